//! Which database is meant.

use std::fmt;

use super::address;

/// The URL of a database on a server, which makes sense and has no secret in it. What it names, such as files, was not
/// looked at. It is shown without its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    url: String,
    place: String,
    is_local: bool,
}

impl ServerUrl {
    /// Of the text of a URL.
    ///
    /// # Errors
    /// What is wrong with it, of which nothing is repeated that may be a secret.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (config, _) = address::read(url)?;
        Ok(Self {
            url: url.into(),
            place: address::place(&config)?,
            is_local: address::is_local(&config),
        })
    }

    /// The same database with another schema: what is made there, and looked for, without one being named.
    pub fn in_schema(&self, schema: &str) -> Self {
        let setting = format!("-csearch_path%3D{schema}");
        let (before, options) = self.url.split_once('?').unwrap_or((self.url.as_str(), ""));
        let options = options.split('&').filter(|option| !option.is_empty());
        let mut options: Vec<String> = options.map(Into::into).collect();
        // Of two settings the last one counts.
        match options
            .iter_mut()
            .rfind(|option| option.starts_with("options="))
        {
            Some(option) => *option += &format!("%20{setting}"),
            None => options.push(format!("options={setting}")),
        }
        Self {
            url: format!("{before}?{}", options.join("&")),
            ..self.clone()
        }
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// Whether it is reached by a socket of this host, and needs no network.
    pub fn is_local(&self) -> bool {
        self.is_local
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerUrl;

    #[test]
    fn a_schema_takes_the_place_of_the_one_that_was_given() {
        for (url, expected) in [
            (
                "postgres://me@db/d",
                "postgres://me@db/d?options=-csearch_path%3Ds",
            ),
            (
                "postgres:///d?host=/run/postgresql&",
                "postgres:///d?host=/run/postgresql&options=-csearch_path%3Ds",
            ),
            (
                "postgres://me@db/d?options=-csearch_path%3Da&passfile=/p",
                "postgres://me@db/d?options=-csearch_path%3Da%20-csearch_path%3Ds&passfile=/p",
            ),
        ] {
            let url = ServerUrl::parse(url).unwrap();
            let other = url.in_schema("s");
            assert_eq!(other.as_str(), expected);
            assert_eq!(ServerUrl::parse(expected), Ok(other.clone()));
            assert_eq!(other.to_string(), url.to_string());
        }
    }

    #[test]
    fn a_url_is_shown_without_its_options_and_refused_without_its_secret() {
        let shown = |url: &str| {
            let url = ServerUrl::parse(url).unwrap();
            (url.to_string(), url.is_local())
        };
        for (url, expected) in [
            (
                "postgres://me@db1,db2/d?passfile=/etc/pass&connect_timeout=3",
                ("postgres://db1,db2/d", false),
            ),
            (
                "postgresql://me@db1:5433/d?sslmode=disable",
                ("postgres://db1:5433/d", false),
            ),
            (
                "postgres://me@/d?host=/run/postgresql",
                ("postgres:///run/postgresql/d", true),
            ),
        ] {
            assert_eq!(shown(url), (expected.0.to_owned(), expected.1), "{url}");
        }
        for (url, why) in [
            ("mysql://me@db/d", "does not begin with postgres://"),
            ("postgres://me:s3cret@db/d", "a password in it"),
            ("postgres://me@db/d?password=s3cret", "a password in it"),
            ("postgres://me@/d", "it names no host"),
            ("postgres://me@db/d?host=/run/postgresql", "name either"),
        ] {
            let refused = ServerUrl::parse(url).unwrap_err();
            assert!(refused.contains(why), "{url}: {refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }
}
