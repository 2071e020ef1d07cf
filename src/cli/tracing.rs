//! Which commands are traced as a whole, and the process that sends traces.

use clap::ArgMatches;

use super::CliError;
use traces::{Service, Span};

/// Sends the traces that it reads on its standard input, until there are no more.
pub(super) fn send_on() -> Result<(), CliError> {
    traces::send_on(std::io::stdin()).map_err(|e| {
        CliError::new(
            "TraceExporter",
            format!("traces are not sent any more: {e}"),
        )
    })
}

/// A command as traces have it.
pub(super) struct Traced {
    name: String,
    service: Service,
}

impl Traced {
    /// That with these arguments; `None` for one that is not traced.
    ///
    /// What goes on until it is told to end is not one thing that is done: an attach and a served vault have a trace of
    /// each that is done by them.
    pub(super) fn of(matches: &ArgMatches) -> Option<Self> {
        let mut path = vec!["sealdisk"];
        let mut within = matches;
        while let Some((name, inner)) = within.subcommand() {
            path.push(name);
            within = inner;
        }
        let service = match path[1..] {
            ["attach" | "continue-attach"] => Service::Attach,
            ["serve"] | ["keyvault", "serve"] => Service::KeyVault,
            // They look at things, again and again.
            [
                "metrics" | "status" | "version" | "completions" | "manpages" | "attach-versions",
                ..,
            ] => {
                return None;
            }
            _ => Service::Command,
        };
        let name = path.join(" ");
        Some(Self { name, service })
    }

    /// Begins to trace it, if anything is traced. To be called before there is a key, and before this process is
    /// confined.
    pub(super) fn begin(self) -> Span {
        traces::start(self.service);
        match self.service {
            Service::Command => Span::of_command(self.name),
            Service::Attach | Service::KeyVault => Span::none(),
        }
    }
}
