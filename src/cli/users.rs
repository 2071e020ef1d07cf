//! Users: `sealdisk identity set-password` and `identity approve`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, Context, Tabular};
use installation::Installation;
use vault::read_secret_file;

#[derive(Args)]
pub(super) struct SetPasswordArgs {
    /// The identity
    name: String,
    /// A file (mode 0600) or a pipe with the password, instead of one that is made and printed
    #[arg(long, value_name = "PATH")]
    password_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct ApproveArgs {
    /// The code that the device shows
    code: String,
    /// The identity as which the device logs in
    #[arg(long, value_name = "IDENTITY")]
    identity_name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PasswordView {
    name: String,
    user_principal_name: String,
    password: String,
}

impl Tabular for PasswordView {
    const COLUMNS: &'static [&'static str] = &["name", "password"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.password.clone()]
    }
}

pub(super) fn set_password(
    context: &Context,
    installation: &Installation,
    args: &SetPasswordArgs,
) -> Result<(), CliError> {
    let name = &args.name;
    if let Some(path) = &args.password_file {
        let password = read_secret_file(path).map_err(|why| CliError::new("SecretFile", why))?;
        return Ok(installation.set_password(name, &password)?);
    }
    let password = Installation::new_password()?;
    let identity = installation.catalog().identity(name)?.record;
    let view = PasswordView {
        name: name.clone(),
        user_principal_name: installation.principal_name(&identity),
        password: password.as_str().to_owned(),
    };
    if !context.output.has(&view, &password)? {
        return Err(CliError::usage(
            "the password is printed once, and would not be in this output: give --password-file PATH, or a --query \
             that has it, as --query password",
        ));
    }
    installation.set_password(name, &password)?;
    let remedy = format!("`sealdisk identity set-password {name}` makes another password");
    context.output.show_once(&view, remedy)
}

pub(super) fn approve(
    context: &Context,
    installation: &Installation,
    args: &ApproveArgs,
) -> Result<(), CliError> {
    let login = installation.device_login(&args.code)?;
    let name = &args.identity_name;
    installation.catalog().identity(name)?;
    let question = format!(
        "Let whoever has begun this login from {} log in as '{name}'?",
        login.peer
    );
    context.output.confirm(&question, args.yes)?;
    Ok(installation.approve_device_login(&args.code, name)?)
}
