//! `sealdisk reference`: the pages of the book about commands, of the commands' own definitions.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Arg, Args, Command};

use super::{CliError, named};

/// Arguments of `reference`.
#[derive(Args)]
pub struct ReferenceArgs {
    /// The directory to write them to
    dir: PathBuf,
}

/// The page with the list of all commands. It has those commands itself that have no others under them.
const INDEX: &str = "commands";

pub(super) fn run(args: &ReferenceArgs, commands: Command) -> Result<(), CliError> {
    let dir = &args.dir;
    let write = || {
        std::fs::create_dir_all(dir)?;
        for (name, text) in pages(commands) {
            std::fs::write(dir.join(name + ".md"), text)?;
        }
        Ok(())
    };
    write().map_err(|error: std::io::Error| {
        let why = format!("cannot write the reference to {}: {error}", dir.display());
        CliError::new("OutputError", why)
    })
}

/// The names of the pages, and what is in them.
fn pages(commands: Command) -> Vec<(String, String)> {
    let mut commands = named::with_option(commands);
    // Gives each command its whole name.
    commands.build();
    let mut pages = vec![(INDEX.to_owned(), index(&commands))];
    for noun in shown(&commands).filter(|command| is_noun(command)) {
        let mut text = format!("# {}\n\n{}.\n", whole_name(noun), about(noun));
        verbs(noun, &mut text);
        text.push_str("\nAll commands have [global options](commands.md#global-options) too.\n");
        pages.push((noun.get_name().to_owned(), text));
    }
    pages
}

fn index(commands: &Command) -> String {
    let mut text = "# Commands\n\n\
        Of `sealdisk`'s own definitions, as `--help` and the man pages are. [The command line](../command-line.md) says what \
        all of them have in common.\n\n\
        | Command | What it does |\n|---|---|\n"
        .to_owned();
    for command in shown(commands) {
        let (name, page) = (whole_name(command), command.get_name());
        let link = match is_noun(command) {
            true => format!("{page}.md"),
            false => format!("#{}", name.replace(' ', "-")),
        };
        line(
            &mut text,
            &format!("| [{name}]({link}) | {} |", about(command)),
        );
    }
    text.push_str("\n## Global options\n");
    arguments(
        commands.get_arguments().filter(|arg| arg.is_global_set()),
        &mut text,
    );
    for command in shown(commands).filter(|command| !is_noun(command)) {
        describe(command, &mut text);
    }
    text
}

/// Describes the commands under one, however deep.
fn verbs(command: &Command, text: &mut String) {
    for verb in shown(command) {
        match is_noun(verb) {
            true => verbs(verb, text),
            false => describe(verb, text),
        }
    }
}

/// The section of a command.
fn describe(command: &Command, text: &mut String) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    line(
        text,
        &format!(
            "\n## {}\n\n{}.\n\n```text\n{usage}\n```",
            whole_name(command),
            about(command)
        ),
    );
    if let Some(long) = command.get_long_about() {
        let long = long.to_string();
        let more = long.split_once("\n\n").map_or("", |(_, more)| more);
        paragraphs(more, text);
    }
    let own = command.get_arguments().filter(|arg| !arg.is_global_set());
    arguments(own, text);
    if let Some(help) = command.get_after_long_help().or(command.get_after_help()) {
        paragraphs(&help.to_string(), text);
    }
}

/// The table of arguments and options.
fn arguments<'a>(arguments: impl Iterator<Item = &'a Arg>, text: &mut String) {
    let is_shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
    let (positionals, options): (Vec<_>, Vec<_>) = arguments
        .filter(is_shown)
        .partition(|arg| arg.is_positional());
    let rows: Vec<_> = positionals.into_iter().chain(options).map(row).collect();
    if !rows.is_empty() {
        line(text, "\n| Argument | Meaning |\n|---|---|");
        rows.iter().for_each(|row| line(text, row));
    }
}

fn row(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut meaning = escaped(&help.map(ToString::to_string).unwrap_or_default());
    let takes_value = arg.get_action().takes_values();
    let values = arg.get_possible_values();
    let values: Vec<_> = values.iter().filter(|value| !value.is_hide_set()).collect();
    if takes_value && !values.is_empty() {
        let each = values.iter().map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), escaped(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        });
        let each: Vec<_> = each.collect();
        _ = write!(meaning, ". One of {}", each.join("; "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().collect();
    if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        let each = defaults.iter().map(|value| value.to_string_lossy());
        let each: Vec<_> = each.collect();
        _ = write!(meaning, " (default: `{}`)", each.join(" "));
    }
    if let Some(variable) = arg.get_env() {
        _ = write!(meaning, " (environment: `{}`)", variable.to_string_lossy());
    }
    format!("| `{}` | {meaning} |", term(arg).replace('|', "\\|"))
}

/// As it is written on a command line.
fn term(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    let value = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values());
    let value = value.map(|names| names.join(" "));
    let several = match arg.get_num_args() {
        Some(range) if range.max_values() > 1 => "…",
        _ => "",
    };
    match value {
        Some(value) if names.is_empty() => format!("{value}{several}"),
        Some(value) => format!("{} {value}{several}", names.join(", ")),
        None => names.join(", "),
    }
}

/// What stands under a help: indented lines are commands, the others are paragraphs.
fn paragraphs(help: &str, text: &mut String) {
    let mut in_block = false;
    if !help.is_empty() && !help.starts_with("  ") {
        text.push('\n');
    }
    for said in help.lines() {
        let is_command = said.starts_with("  ");
        if said.trim().is_empty() && in_block {
            continue;
        }
        if is_command != in_block {
            line(text, if is_command { "\n```sh" } else { "```\n" });
            in_block = is_command;
        }
        match is_command {
            true => line(text, said.trim_start()),
            false => line(text, &markup(said)),
        }
    }
    if in_block {
        line(text, "```");
    }
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    let is_shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    command.get_subcommands().filter(is_shown)
}

fn is_noun(command: &Command) -> bool {
    shown(command).next().is_some()
}

fn whole_name(command: &Command) -> String {
    command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned()
}

/// The sentence about a command, without its full stop.
fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    markup(about.unwrap_or_default().trim_end_matches('.'))
}

/// For a cell of a table.
fn escaped(help: &str) -> String {
    let words: Vec<_> = help.split_whitespace().collect();
    markup(&words.join(" ")).replace('|', "\\|")
}

/// A text without marks, in Markdown.
fn markup(said: &str) -> String {
    let mut kept = String::new();
    for (n, part) in said.split('`').enumerate() {
        if n > 0 {
            kept.push('`');
        }
        match n % 2 {
            0 => kept += &part.replace('<', "&lt;").replace('*', "\\*"),
            _ => kept += part,
        }
    }
    kept
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
