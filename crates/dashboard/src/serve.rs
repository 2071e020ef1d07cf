//! The life of the dashboard.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::{Guesses, Hosts, Sessions, Token};
use crate::data::{Shared, look_again_and_again, watch_disks};
use crate::error::DashboardError;
use crate::http::{Cookie, Dashboard, questions};
use crate::options::DashboardOptions;
use crate::page::Pages;
use vault::audit::{AuditError, Pin, pins};
use web::Listen;

/// Where the dashboard is, and how to log in.
#[derive(Debug)]
pub struct Serving<'a> {
    /// Where it listens.
    pub listening: &'a Listen,
    /// Where people open it.
    pub url: String,
    /// The file with the token.
    pub token_file: &'a Path,
}

/// Serves the dashboard until SIGTERM or SIGINT. `ready` is called once it is listened on.
///
/// # Errors
/// [`DashboardError`]: it was not served.
pub fn serve(
    options: DashboardOptions,
    ready: impl FnOnce(&Serving<'_>),
) -> Result<(), DashboardError> {
    let address = options.listen.address();
    if let Some(address) = address.filter(|address| !address.ip().is_loopback())
        && !options.allow_remote
    {
        return Err(DashboardError::Exposed(address));
    }
    let token = Token::load(&options.token_file)?;
    let pins = options.checkpoint.as_deref().map(read_pins).transpose()?;
    // Each disk takes one.
    attach::raise_file_limit();
    let (token_file, public) = (options.token_file, options.public_url);
    let (told_file, told_public) = (token_file.clone(), public.clone());
    let service = |listening: &Listen| -> Result<Dashboard, DashboardError> {
        let shared = Arc::new(Shared::new());
        let pins = pins.unwrap_or_default();
        look_again_and_again(&shared, &options.place, pins, options.period)?;
        tokio::spawn(watch_disks(shared.clone(), options.runtime_dir));
        let port = listening.address().map_or(0, |address| address.port());
        Ok(Dashboard {
            token,
            hosts: Hosts::new(listening, public.as_ref()),
            sessions: Sessions::default(),
            guesses: Guesses::new(),
            pages: Pages::new(),
            cookie: Cookie {
                name: format!("sealdisk-{port}"),
                is_secure: public.is_some_and(|public| public.is_secure),
            },
            shared,
            place: options.place,
            questions: questions(),
        })
    };
    let ready = |listening: &Listen| {
        let url = told_public.map_or_else(|| listening.to_string(), |public| public.origin);
        ready(&Serving {
            listening,
            url,
            token_file: &told_file,
        });
    };
    web::serve(options.listen, service, ready)
}

fn read_pins(path: &Path) -> Result<Vec<Pin>, DashboardError> {
    let fail = |source| DashboardError::Checkpoint {
        path: path.into(),
        source: Box::new(source),
    };
    let file = File::open(path).map_err(|source| {
        fail(AuditError::Io {
            call: "open",
            path: PathBuf::from(path),
            source,
        })
    })?;
    pins(BufReader::new(file)).map_err(fail)
}
