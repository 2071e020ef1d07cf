//! `--name NAME` (`-n`) beside the positional NAME, as the Azure CLI has it, for every command.
//!
//! The definitions of commands have the positional only. Here the option is added to all of them, and
//! a command line that has it is rewritten into the one with the positional before it is taken apart,
//! so that no command has to know.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgMatches, Command};

/// The positional's id, as all commands call it.
const POSITIONAL: &str = "name";
/// The option's id.
const OPTION: &str = "name_option";
const LONG: &str = "--name";
const SHORT: &str = "-n";

/// Whether the option can stand in for the positional of a command: its only one, of one value, and
/// the option is free.
fn takes_option(command: &Command) -> bool {
    let mut positionals = command.get_positionals();
    let is_name = |arg: &Arg| arg.get_id() == POSITIONAL;
    let only = positionals.next().is_some_and(is_name) && positionals.next().is_none();
    let taken = |arg: &Arg| arg.get_long() == Some("name") || arg.get_short() == Some('n');
    only && !command.get_opts().any(taken)
}

/// The commands with the option added.
pub(super) fn with_option(command: Command) -> Command {
    let command = command.mut_subcommands(with_option);
    if !takes_option(&command) {
        return command;
    }
    let required = command
        .get_positionals()
        .next()
        .is_some_and(Arg::is_required_set);
    let option = Arg::new(OPTION)
        .long("name")
        .short('n')
        .value_name("NAME")
        .help("The same as the argument NAME")
        .conflicts_with(POSITIONAL);
    command
        .mut_arg(POSITIONAL, |arg| match required {
            true => arg.required(false).required_unless_present(OPTION),
            false => arg,
        })
        .arg(option)
}

/// The command line with the positional in place of the option, where it has that. `commands` are
/// those of [`with_option`].
///
/// # Errors
/// What is wrong with the command line: an option without a value, or both of them.
pub(super) fn positional(
    commands: Command,
    arguments: &[OsString],
) -> Result<Vec<OsString>, clap::Error> {
    let matches = commands.clone().try_get_matches_from(arguments)?;
    let Some((leaf, path)) = leaf(&matches) else {
        return Ok(arguments.to_vec());
    };
    let Some(name) = leaf.try_get_one::<String>(OPTION).ok().flatten() else {
        return Ok(arguments.to_vec());
    };
    let mut at = after_path(&commands, &path, arguments);
    let mut rewritten = arguments.to_vec();
    // It is the command's own place for a name, whatever options take several values.
    rewritten.insert(at, name.into());
    at += 1;
    remove_option(&mut rewritten, at, name);
    Ok(rewritten)
}

/// The matches of the command that is called, with the names of the commands that lead there.
pub(super) fn leaf(matches: &ArgMatches) -> Option<(&ArgMatches, Vec<String>)> {
    let mut path = Vec::new();
    let mut leaf = matches;
    while let Some((name, inner)) = leaf.subcommand() {
        path.push(name.to_owned());
        leaf = inner;
    }
    (!path.is_empty()).then_some((leaf, path))
}

/// Where the arguments of the command begin to which `path` leads. The line was parsed already, so
/// that each name is there.
fn after_path(commands: &Command, path: &[String], arguments: &[OsString]) -> usize {
    let mut at = 1;
    let mut command = commands;
    for name in path {
        while let Some(argument) = arguments.get(at) {
            let found = argument
                .to_str()
                .and_then(|text| command.find_subcommand(text));
            at += 1;
            if let Some(found) = found.filter(|found| found.get_name() == name) {
                command = found;
                break;
            }
            // The value of a global option may be called as a command is.
            if takes_next(commands, argument) {
                at += 1;
            }
        }
    }
    at
}

/// Whether a global option has its value in the next argument.
fn takes_next(commands: &Command, argument: &OsStr) -> bool {
    let Some(text) = argument.to_str() else {
        return false;
    };
    commands.get_opts().any(|option| {
        let long = option.get_long().map(|long| format!("--{long}"));
        let short = option.get_short().map(|short| format!("-{short}"));
        long.as_deref() == Some(text) || short.as_deref() == Some(text)
    })
}

/// Takes the option with its value out of the arguments from `from` on, in whichever form it is
/// given there: `--name X`, `--name=X`, `-n X`, `-n=X` or `-nX`.
fn remove_option(arguments: &mut Vec<OsString>, from: usize, name: &str) {
    let forms = [
        format!("{LONG}={name}"),
        format!("{SHORT}={name}"),
        format!("{SHORT}{name}"),
    ];
    for at in from..arguments.len() {
        let argument = &arguments[at];
        let apart = argument == LONG || argument == SHORT;
        if apart && arguments.get(at + 1).is_some_and(|value| value == name) {
            arguments.drain(at..at + 2);
            return;
        }
        if forms.iter().any(|form| argument == form.as_str()) {
            arguments.remove(at);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Command {
        let name = || Arg::new(POSITIONAL);
        let global = Arg::new("output").long("output").short('o').global(true);
        with_option(
            Command::new("sealdisk").arg(global).subcommand(
                Command::new("keyvault")
                    .subcommand(
                        Command::new("create")
                            .arg(name().required(true))
                            .arg(Arg::new("ops").long("ops").num_args(1..)),
                    )
                    .subcommand(Command::new("rotate").arg(name()))
                    .subcommand(
                        Command::new("copy")
                            .arg(name().required(true))
                            .arg(Arg::new("to").required(true)),
                    ),
            ),
        )
    }

    fn rewritten(line: &str) -> Result<String, String> {
        let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let rewritten = positional(commands(), &arguments).map_err(|e| e.to_string())?;
        let words: Vec<&str> = rewritten.iter().map(|w| w.to_str().unwrap()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn the_option_becomes_the_positional_wherever_it_stands() {
        for (line, expected) in [
            ("sealdisk keyvault create x", "sealdisk keyvault create x"),
            (
                "sealdisk keyvault create --name x",
                "sealdisk keyvault create x",
            ),
            (
                "sealdisk keyvault create --name=x",
                "sealdisk keyvault create x",
            ),
            (
                "sealdisk keyvault create -n x",
                "sealdisk keyvault create x",
            ),
            ("sealdisk keyvault create -nx", "sealdisk keyvault create x"),
            (
                "sealdisk keyvault create --ops a b --name x",
                "sealdisk keyvault create x --ops a b",
            ),
            (
                "sealdisk keyvault create --ops x --name x",
                "sealdisk keyvault create x --ops x",
            ),
            (
                "sealdisk -o keyvault keyvault create -n create",
                "sealdisk -o keyvault keyvault create create",
            ),
            (
                "sealdisk keyvault -o create create -n x",
                "sealdisk keyvault -o create create x",
            ),
            ("sealdisk keyvault rotate", "sealdisk keyvault rotate"),
            (
                "sealdisk keyvault rotate -n x",
                "sealdisk keyvault rotate x",
            ),
        ] {
            assert_eq!(rewritten(line).as_deref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn neither_and_both_are_errors() {
        for (line, why) in [
            ("sealdisk keyvault create", "required"),
            ("sealdisk keyvault create --name", "value is required"),
            ("sealdisk keyvault create x --name y", "cannot be used with"),
            ("sealdisk keyvault create --name y x", "cannot be used with"),
            (
                "sealdisk keyvault create -n x -n y",
                "cannot be used multiple times",
            ),
            // Two names, of which it is not known which is meant.
            ("sealdisk keyvault copy -n x y", "unexpected argument"),
        ] {
            let error = rewritten(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
