//! What is said of a command line that makes no sense, and what is not said of commands that are not for people.

use std::ffi::OsString;

use clap::Command;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use strsim::osa_distance;

/// Whether one error says more of a command line than another, which is of the same line.
pub(super) fn says_more(one: &clap::Error, other: &clap::Error) -> bool {
    let help = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    one.kind() == other.kind() || one.kind() == help && other.kind() == ErrorKind::MissingSubcommand
}

/// The commands with no option that the environment gives.
pub(super) fn without_environment(commands: Command) -> Command {
    let commands = commands.mut_args(|arg| arg.env(Resettable::Reset));
    commands.mut_subcommands(without_environment)
}

/// The commands without those that only this program itself calls.
pub(super) fn for_people(commands: &Command) -> Command {
    let shown = commands.get_subcommands().filter(|c| !c.is_hide_set());
    Command::new("sealdisk")
        .version(env!("CARGO_PKG_VERSION"))
        .args(commands.get_arguments())
        .subcommands(shown)
}

/// Takes the names of commands that are not for people out of what an error lists and suggests.
pub(super) fn hide(error: &mut clap::Error, commands: &Command) {
    let is_hidden = |name: &str| {
        let command = commands.find_subcommand(name);
        command.is_some_and(Command::is_hide_set)
    };
    for kind in [
        ContextKind::SuggestedSubcommand,
        ContextKind::ValidSubcommand,
    ] {
        let names = match error.get(kind) {
            Some(ContextValue::Strings(names)) => names.clone(),
            Some(ContextValue::String(name)) => vec![name.clone()],
            _ => continue,
        };
        let mut shown: Vec<String> = names.into_iter().filter(|name| !is_hidden(name)).collect();
        if let (ContextKind::SuggestedSubcommand, Some(ContextValue::String(typed))) =
            (kind, error.get(ContextKind::InvalidSubcommand))
        {
            shown.sort_by_key(|name| osa_distance(typed, name));
        }
        match shown.is_empty() {
            true => error.remove(kind),
            false => error.insert(kind, ContextValue::Strings(shown)),
        };
    }
}

/// What clap says in paragraphs (what is wrong, tips, usage, a pointer to --help) as one line.
pub(super) fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines = text.lines().map(str::trim);
    let said: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    said.join(" ")
        .replace(" Usage: ", "; usage: ")
        .replace(" tip: ", "; tip: ")
}

/// What is wrong with options by the names that they were given by, where they have several.
pub(super) fn as_typed(line: &str, arguments: &[OsString], commands: &Command) -> String {
    let (wrong, usage) = match line.split_once("; usage: ") {
        Some((wrong, usage)) => (wrong, format!("; usage: {usage}")),
        None => (line, String::new()),
    };
    let is_typed = |name: &str| {
        let option = format!("--{name}");
        let given = arguments.iter().filter_map(|argument| argument.to_str());
        given
            .map(|argument| argument.split_once('=').map_or(argument, |(name, _)| name))
            .any(|name| name == option)
    };
    let mut wrong = wrong.to_owned();
    for (name, alias) in aliases(commands) {
        if is_typed(&alias) && !is_typed(&name) {
            wrong = wrong.replace(&format!("'--{name} "), &format!("'--{alias} "));
            wrong = wrong.replace(&format!("'--{name}'"), &format!("'--{alias}'"));
        }
    }
    wrong + &usage
}

/// The options that have another name besides, with each, of these commands and those below.
fn aliases(commands: &Command) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for option in commands.get_arguments() {
        let Some(name) = option.get_long() else {
            continue;
        };
        let others = option.get_all_aliases().unwrap_or_default();
        found.extend(
            others
                .into_iter()
                .map(|alias| (name.to_owned(), alias.to_owned())),
        );
    }
    found.extend(commands.get_subcommands().flat_map(aliases));
    found
}

/// Whether errors are to be JSON. The arguments could not be parsed, so this only looks for the option.
pub(super) fn wants_json(arguments: &[OsString]) -> bool {
    let is_json = |text: &str| ["json", "jsonc"].contains(&text);
    let joined = |argument: &OsString| {
        let text = argument.to_str()?;
        let value = ["--output=", "-o=", "-o"]
            .iter()
            .find_map(|name| text.strip_prefix(name))?;
        Some(is_json(value))
    };
    let apart = |pair: &[OsString]| {
        (pair[0] == "-o" || pair[0] == "--output") && pair[1].to_str().is_some_and(is_json)
    };
    arguments.iter().filter_map(joined).any(|json| json) || arguments.windows(2).any(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_refused_by_the_name_that_was_typed() {
        let queues = clap::Arg::new("queues")
            .long("queues")
            .alias("num-queues")
            .value_parser(clap::value_parser!(u16));
        let commands = Command::new("sealdisk").subcommand(Command::new("enable").arg(queues));
        for typed in ["--queues", "--num-queues", "--num-queues=x"] {
            let arguments: Vec<_> = ["sealdisk", "enable", typed, "x"]
                .map(OsString::from)
                .into();
            let error = commands
                .clone()
                .try_get_matches_from(&arguments[..4 - usize::from(typed.contains('='))]);
            let line = one_line(&error.unwrap_err().render().to_string());
            let line = as_typed(&line, &arguments, &commands);
            let (name, _) = typed.split_once('=').unwrap_or((typed, ""));
            assert!(line.contains(&format!("for '{name} ")), "{line}");
        }
    }

    #[test]
    fn json_is_recognised_in_arguments_that_do_not_parse() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in [
            "disk bogus -o json",
            "--output=json disk",
            "-ojsonc x",
            "x --output jsonc",
        ] {
            assert!(wants_json(&args(&format!("sealdisk {line}"))), "{line}");
        }
        for line in [
            "disk json -o table",
            "disk json",
            "-o tsv json",
            "--outputjson",
        ] {
            assert!(!wants_json(&args(&format!("sealdisk {line}"))), "{line}");
        }
    }
}
