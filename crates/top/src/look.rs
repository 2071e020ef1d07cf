//! What a terminal can show: colours, and characters beyond ASCII. Nothing is said by a colour alone.

use ratatui::style::{Color, Modifier, Style};

use live::Standing;

/// Eighths of a cell, from nothing to all of it.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same in ASCII.
const PLAIN_BARS: [char; 9] = [' ', '_', '.', '-', '~', '=', '+', '*', '#'];

/// How things look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    has_colours: bool,
    is_unicode: bool,
}

impl Look {
    /// As the environment of a terminal wants it: `NO_COLOR` (no-color.org), `TERM`, and the locale.
    pub(crate) fn of(variable: impl Fn(&str) -> String) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(&variable);
        let locale = locale.into_iter().find(|value| !value.is_empty());
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            has_colours: variable("NO_COLOR").is_empty() && shows_colours(&variable("TERM")),
            is_unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// As the environment of this process wants it.
    pub(crate) fn of_terminal() -> Self {
        Self::of(|name| {
            let value = std::env::var_os(name).unwrap_or_default();
            value.to_string_lossy().into_owned()
        })
    }

    /// Everything that a good terminal has.
    #[cfg(test)]
    pub(crate) fn best() -> Self {
        Self {
            has_colours: true,
            is_unicode: true,
        }
    }

    /// The character before `s` in microseconds.
    pub(crate) fn micro(self) -> char {
        if self.is_unicode { 'µ' } else { 'u' }
    }

    /// A character that is that many eighths full.
    pub(crate) fn bar(self, eighths: usize) -> char {
        let bars = if self.is_unicode { BARS } else { PLAIN_BARS };
        bars[eighths.min(8)]
    }

    /// A character of a bar that goes from left to right.
    pub(crate) fn full(self) -> char {
        self.bar(8)
    }

    /// What shows that there is more of a text.
    pub(crate) fn ellipsis(self) -> &'static str {
        if self.is_unicode { "…" } else { "~" }
    }

    /// Arrows of keys, and of the direction of sorting.
    pub(crate) fn arrows(self) -> [&'static str; 2] {
        if self.is_unicode {
            ["↑", "↓"]
        } else {
            ["^", "v"]
        }
    }

    fn coloured(self, style: Style, colour: Color) -> Style {
        match self.has_colours {
            true => style.fg(colour),
            false => style,
        }
    }

    /// Of a disk, by what is to be known of it first.
    pub(crate) fn standing(self, standing: Standing) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        match standing {
            Standing::Silent | Standing::KeyRevoked | Standing::SpaceFull | Standing::Stalled => {
                self.coloured(bold, Color::Red)
            }
            Standing::KeyUnreachable | Standing::JobHeldUp => self.coloured(bold, Color::Yellow),
            Standing::Awaited | Standing::LetGo | Standing::Asked => {
                Style::new().add_modifier(Modifier::DIM)
            }
            Standing::Served => Style::new(),
        }
    }

    /// Of sparklines and bars.
    pub(crate) fn graph(self) -> Style {
        self.coloured(Style::new(), Color::Cyan)
    }

    /// Of headings.
    pub(crate) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Of the line with the columns' titles, and of the selected line.
    pub(crate) fn reversed(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// Whether a terminal of that kind shows colours: the few that do not are old ones, and those that say it in their name.
fn shows_colours(term: &str) -> bool {
    let is_old = ["vt", "ansi-m", "linux-m", "xterm-mono", "wy", "hp"]
        .iter()
        .any(|name| term.starts_with(name));
    !is_old && !term.ends_with("-m") && !term.ends_with("-mono") && term != "dumb"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(variables: &[(&str, &str)]) -> Look {
        Look::of(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map_or(String::new(), |(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn colours_are_for_terminals_that_have_them_and_for_those_who_want_them() {
        assert!(look(&[("TERM", "screen-256color")]).has_colours);
        assert!(look(&[("TERM", "xterm"), ("NO_COLOR", "")]).has_colours);
        for variables in [
            [("TERM", "xterm"), ("NO_COLOR", "1")],
            [("TERM", "vt220"), ("NO_COLOR", "")],
            [("TERM", "xterm-mono"), ("NO_COLOR", "")],
        ] {
            let look = look(&variables);
            assert!(!look.has_colours, "{variables:?}");
            for standing in [Standing::Silent, Standing::KeyUnreachable] {
                assert_eq!(look.standing(standing).fg, None);
            }
        }
    }

    #[test]
    fn the_locale_says_whether_there_is_more_than_ascii() {
        assert!(look(&[("LANG", "de_DE.UTF-8")]).is_unicode);
        assert!(look(&[("LC_ALL", "C.utf8"), ("LANG", "C")]).is_unicode);
        for variables in [
            &[("LANG", "C")][..],
            &[],
            &[("LC_ALL", "C"), ("LANG", "C.UTF-8")],
        ] {
            let look = look(variables);
            assert!(!look.is_unicode, "{variables:?}");
            let all = (0..20).map(|eighths| look.bar(eighths));
            assert!(all.chain([look.micro()]).all(|c| c.is_ascii()));
            assert!(look.ellipsis().is_ascii());
        }
    }
}
