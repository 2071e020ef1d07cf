//! Which disks, snapshots or images of all are listed.

use clap::Args;
use clap::builder::PossibleValuesParser;
use glob::Pattern;

use super::output::vault_of;
use super::{CliError, Context};
use disks::{DiskView, LayerView};
use installation::envelope::ResourceKind;
use vault::{KeyUrl, same_key_url};

/// What a thing in a list must be like. Of options of different names all must hold.
#[derive(Args)]
pub(super) struct FilterArgs {
    /// Only those with a name like one of these: * stands for any text, ? for one character
    #[arg(value_name = "PATTERN", value_parser = pattern)]
    patterns: Vec<Pattern>,
    /// Only those of which a layer is under a key of this disk encryption set
    #[arg(long, visible_alias = "set", value_name = "NAME")]
    disk_encryption_set: Option<String>,
    /// Only those of which a layer is under the platform-managed key
    #[arg(long, conflicts_with = "disk_encryption_set")]
    platform_managed: bool,
    /// Only those of which a layer is under this key: KEY, VAULT/KEY, or its URL with or without a version
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// What a disk in a list must be like.
#[derive(Args)]
pub(super) struct DiskFilterArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only those that are attached
    #[arg(long)]
    attached: bool,
    /// Only those in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', ignore_case = true,
          value_parser = PossibleValuesParser::new(DiskView::STATES))]
    state: Vec<String>,
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|e| e.msg.into())
}

impl FilterArgs {
    /// Prints those that it lets through, of all of a kind.
    pub(super) fn list(&self, context: &Context, kind: ResourceKind) -> Result<(), CliError> {
        context.output.list(&self.views(context, kind)?)
    }

    fn views(&self, context: &Context, kind: ResourceKind) -> Result<Vec<DiskView>, CliError> {
        let installation = context.installation()?;
        if let Some(set) = &self.disk_encryption_set {
            // One that is not there is a slip, not a set without disks.
            installation.catalog().des(set)?;
        }
        let mut views = disks::list(&installation, kind)?;
        views.retain(|view| self.takes(view));
        Ok(views)
    }

    fn takes(&self, view: &DiskView) -> bool {
        let encryption = &view.encryption;
        let own = (
            encryption.disk_encryption_set_id.as_deref(),
            encryption.key_url.as_str(),
        );
        let layers = view.layers.iter().flat_map(LayerView::keys);
        let mut keys: Vec<(Option<&str>, &str)> = layers.collect();
        if keys.is_empty() {
            // Its header cannot be read: the catalog's row is what is known.
            keys.push(own);
        }
        let named = |pattern: &Pattern| pattern.matches(&view.name);
        let set = self.disk_encryption_set.as_deref();
        (self.patterns.is_empty() || self.patterns.iter().any(named))
            && (set.is_none() || keys.iter().any(|(of, _)| *of == set))
            && (!self.platform_managed || keys.iter().any(|(of, _)| of.is_none()))
            && self.key.as_deref().is_none_or(|key| {
                let mut urls = keys.iter().map(|(_, url)| *url);
                urls.any(|url| is_key(key, url))
            })
    }
}

impl DiskFilterArgs {
    /// Prints the disks that it lets through.
    pub(super) fn list(&self, context: &Context) -> Result<(), CliError> {
        let mut views = self.filter.views(context, ResourceKind::Disk)?;
        let is_state = |view: &DiskView, state: &str| view.disk_state.eq_ignore_ascii_case(state);
        views.retain(|view| {
            (self.state.is_empty() || self.state.iter().any(|state| is_state(view, state)))
                && (!self.attached || view.is_attached())
        });
        context.output.list(&views)
    }
}

/// Whether a key that is named in one of the ways of `--key` is the one with that URL.
fn is_key(named: &str, url: &str) -> bool {
    let Ok(parsed) = url.parse::<KeyUrl>() else {
        return false;
    };
    if named.contains("://") {
        let without_version = url.trim_end_matches(|c| c != '/').trim_end_matches('/');
        let all_versions = parsed.key.version.is_some() && same_key_url(named, without_version);
        return same_key_url(named, url) || all_versions;
    }
    let (vault, name) = (vault_of(&parsed), &parsed.key.name);
    match named.split_once('/') {
        Some((of, key)) => of.eq_ignore_ascii_case(vault) && key.eq_ignore_ascii_case(name),
        None => named.eq_ignore_ascii_case(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_each_of_its_names() {
        let version = "0123456789abcdef0123456789abcdef";
        let key = "https://myvault.vault.localhost/keys/mykey";
        let url = format!("{key}/{version}");
        for named in [
            "mykey",
            "MyKey",
            "myvault/mykey",
            key,
            &url,
            &url.to_uppercase(),
        ] {
            // The scheme of a URL is written small.
            let named = named.replace("HTTPS", "https");
            assert!(is_key(&named, &url), "{named}");
        }
        let other = format!("{key}/{}", "f".repeat(32));
        let vault = "https://myvault.vault.localhost/keys";
        for named in ["key", "myvault", "other/mykey", "myvault/", &other, vault] {
            assert!(!is_key(named, &url), "{named}");
        }
    }
}
