use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::draw;
use crate::app::{Action, App};
use crate::look::Look;
use crate::sampler::{Command, Sampled, Snapshot};
use crate::samples::{app, disk, events, host, now};
use live::Standing;

const SIZES: [(u16, u16); 3] = [(80, 24), (40, 10), (200, 60)];

fn plain() -> Look {
    Look::of(|_| String::new())
}

fn buffer(app: &mut App, (width, height): (u16, u16), look: Look) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, look)).unwrap();
    terminal.backend().buffer().clone()
}

/// What is shown, a line each.
fn shown(app: &mut App, size: (u16, u16), look: Look) -> Vec<String> {
    let buffer = buffer(app, size, look);
    let line = |y| {
        let cells = (0..size.0).map(|x| buffer[(x, y)].symbol().to_owned());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..size.1).map(line).collect()
}

fn press(app: &mut App, keys: &[KeyCode]) -> Option<Action> {
    let mut last = None;
    for key in keys {
        last = app.key(KeyEvent::new(*key, KeyModifiers::NONE));
    }
    last
}

fn type_text(app: &mut App, text: &str) {
    for c in text.chars() {
        press(app, &[KeyCode::Char(c)]);
    }
}

fn line<'a>(lines: &'a [String], begin: &str) -> &'a str {
    let found = lines.iter().find(|line| line.starts_with(begin));
    found.unwrap_or_else(|| panic!("no {begin} in\n{}", lines.join("\n")))
}

#[test]
fn the_page_of_the_documentation_is_what_80_by_24_shows() {
    let lines = shown(&mut app(&host()), (80, 24), Look::best());
    let screen = format!("```text\n{}\n```", lines.join("\n"));
    let document = include_str!("../../../../docs/top.md");
    assert!(
        document.contains(&screen),
        "docs/top.md does not have\n{screen}"
    );
}

#[test]
fn each_size_has_all_disks_that_fit_and_their_states_in_words() {
    for size in SIZES {
        for look in [Look::best(), plain()] {
            let lines = shown(&mut app(&host()), size, look);
            let all = lines.join("\n");
            assert!(line(&lines, "db-primary").contains("23.7k"), "{all}");
            assert!(all.contains("key revoked"), "{all}");
            if size.1 >= 24 {
                assert!(line(&lines, "old-shop").contains("revoked"), "{all}");
                assert!(line(&lines, "mail").contains("unreach"), "{all}");
                assert!(line(&lines, "web2").contains("rotate-dek 41%"), "{all}");
                assert!(line(&lines, "win11").contains("silent"), "{all}");
                assert!(line(&lines, "backup").contains("space full"), "{all}");
            }
            let first = if size.0 < 80 {
                "9 disks, 1 silent"
            } else {
                "sealdisk top  host1  10:30:00Z"
            };
            assert!(lines[0].starts_with(first), "{all}");
            if size.0 >= 80 {
                assert!(lines.last().unwrap().contains("q quit"), "{all}");
            }
        }
    }
}

#[test]
fn nothing_is_said_by_a_colour_alone_and_without_colours_there_are_none() {
    let without = Look::of(|name| match name {
        "NO_COLOR" => "1".into(),
        _ => "C.UTF-8".into(),
    });
    let size = (80, 24);
    let coloured = buffer(&mut app(&host()), size, Look::best());
    let colourless = buffer(&mut app(&host()), size, without);
    let colours = |buffer: &Buffer| {
        buffer
            .content
            .iter()
            .filter(|cell| cell.fg != Color::Reset)
            .count()
    };
    assert!(colours(&coloured) > 0);
    assert_eq!(colours(&colourless), 0);
    for (one, other) in coloured.content.iter().zip(&colourless.content) {
        assert_eq!(one.symbol(), other.symbol());
    }
    let plain = shown(&mut app(&host()), size, plain());
    assert!(plain.join("").is_ascii(), "{}", plain.join("\n"));
}

#[test]
fn no_size_is_too_small_or_too_large() {
    let mut table = app(&host());
    let mut page = app(&host());
    press(&mut page, &[KeyCode::Enter]);
    let mut help = app(&host());
    press(&mut help, &[KeyCode::Char('?')]);
    let mut filter = app(&host());
    press(&mut filter, &[KeyCode::Char('/')]);
    let mut none = app(&[]);
    for app in [&mut table, &mut page, &mut help, &mut filter, &mut none] {
        for width in [1, 2, 3, 9, 10, 20, 39, 79, 139, 140, 400] {
            for height in [1, 2, 3, 5, 6, 11, 12, 100] {
                shown(app, (width, height), Look::best());
            }
        }
    }
}

#[test]
fn thousands_of_disks_are_scrolled_through() {
    let disks: Vec<_> = (1..=3000)
        .map(|number| disk(number, &format!("d{number:04}"), 10))
        .collect();
    let mut app = app(&disks);
    let size = (80, 24);
    let first = |app: &mut App| shown(app, size, Look::best())[4].clone();
    assert!(first(&mut app).starts_with("d0001"));
    press(&mut app, &[KeyCode::End]);
    let lines = shown(&mut app, size, Look::best());
    assert!(lines[22].starts_with("d3000"), "{}", lines.join("\n"));
    press(&mut app, &[KeyCode::PageUp; 2]);
    assert!(!first(&mut app).starts_with("d0001"));
    press(&mut app, &[KeyCode::Home, KeyCode::Down, KeyCode::Enter]);
    assert!(shown(&mut app, size, Look::best())[0].starts_with("d0002"));
}

#[test]
fn keys_sort_and_the_selection_stays_with_its_disk() {
    let mut app = app(&host());
    let size = (80, 24);
    let names = |app: &mut App| {
        let lines = shown(app, size, Look::best());
        let lines = lines[4..].iter().take_while(|line| !line.is_empty());
        let name = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        lines.map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut app)[..3], ["db-primary", "db-replica", "web1"]);
    press(&mut app, &[KeyCode::Char('N')]);
    assert_eq!(names(&mut app)[..2], ["backup", "ci-7f3a"]);
    press(&mut app, &[KeyCode::Char('r')]);
    assert_eq!(names(&mut app)[..2], ["win11", "web2"]);
    // The key is worst where it is revoked.
    press(&mut app, &[KeyCode::Char('K')]);
    assert_eq!(names(&mut app)[..3], ["old-shop", "mail", "win11"]);
    press(&mut app, &[KeyCode::Char('>')]);
    assert_eq!(names(&mut app)[0], "web2", "it has a job");
    press(&mut app, &[KeyCode::Char('<'); 8]);
    let titles = shown(&mut app, size, Look::best())[3].clone();
    assert!(titles.contains("DISK↑"), "{titles}");
    press(
        &mut app,
        &[KeyCode::Char('I'), KeyCode::Down, KeyCode::Char('N')],
    );
    press(&mut app, &[KeyCode::Enter]);
    assert!(shown(&mut app, size, Look::best())[0].starts_with("db-replica"));
}

#[test]
fn a_filter_is_written_kept_and_removed() {
    let mut app = app(&host());
    let size = (80, 24);
    press(&mut app, &[KeyCode::Char('/')]);
    type_text(&mut app, "WEBx");
    press(&mut app, &[KeyCode::Backspace]);
    let lines = shown(&mut app, size, Look::best());
    assert!(lines[23].contains("filter: WEB_"), "{}", lines[23]);
    press(&mut app, &[KeyCode::Enter]);
    let lines = shown(&mut app, size, Look::best());
    // The key's URL has it as well.
    assert!(lines[23].starts_with("filter 'WEB': "), "{}", lines[23]);
    press(
        &mut app,
        &[KeyCode::Char('/'), KeyCode::Backspace, KeyCode::Esc],
    );
    assert_eq!(app.view.filter, "WEB", "as it was before");
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!(app.view.filter, "");
    press(&mut app, &[KeyCode::Char('/')]);
    type_text(&mut app, "revoked");
    press(&mut app, &[KeyCode::Enter]);
    let lines = shown(&mut app, size, Look::best());
    assert!(
        lines[4].starts_with("old-shop") && lines[5].is_empty(),
        "{lines:#?}"
    );
    press(&mut app, &[KeyCode::Char('/')]);
    type_text(&mut app, "nothing like it");
    let lines = shown(&mut app, size, Look::best());
    assert!(lines[4].contains("filter wants"), "{lines:#?}");
}

#[test]
fn a_disk_has_a_page_with_its_latencies_layers_and_events() {
    for size in SIZES {
        let mut app = app(&host());
        let web2 = host()[1].id;
        app.selected = Some(web2);
        let action = press(&mut app, &[KeyCode::Enter]);
        assert_eq!(action, Some(Action::Tell(Command::Follow(Some(web2)))));
        app.take(Sampled::Events(web2, Ok(events())));
        app.take(Sampled::Events(host()[0].id, Err("of another one".into())));
        let mut all = String::new();
        for _ in 0..60 {
            all += &shown(&mut app, size, Look::best()).join("\n");
            press(&mut app, &[KeyCode::Down]);
        }
        for wanted in [
            "web2  10 GiB  served",
            "read ",
            "key      active",
            "reads",
            "1 layer",
            "00000007",
            "Struck",
        ] {
            assert!(all.contains(wanted), "{wanted} is not in {all}");
        }
        if size.0 >= 80 {
            for wanted in [
                "rotate-dek 41%: 41 MiB of 100 MiB",
                "Attached: the disk web2 is attached",
                "limits   none",
            ] {
                assert!(all.contains(wanted), "{wanted} is not in {all}");
            }
        }
        if size.0 >= 200 {
            let first = shown(&mut app, size, Look::best());
            assert!(
                first[0].contains("web2") && first[0].contains("latency"),
                "{}",
                first[0]
            );
        }
        let action = press(&mut app, &[KeyCode::Char('q')]);
        assert_eq!(action, Some(Action::Tell(Command::Follow(None))));
        assert!(shown(&mut app, (80, 24), Look::best())[0].starts_with("sealdisk top"));
        assert_eq!(press(&mut app, &[KeyCode::Char('q')]), Some(Action::Quit));
    }
}

#[test]
fn a_disk_that_is_detached_says_so_on_its_page() {
    let mut app = app(&host());
    press(&mut app, &[KeyCode::Enter]);
    app.take(Sampled::Host(Snapshot {
        time: now(),
        rows: Ok(Vec::new()),
    }));
    assert!(shown(&mut app, (80, 24), Look::best())[0].contains("not attached here any more"));
    press(&mut app, &[KeyCode::Esc]);
    let lines = shown(&mut app, (80, 24), Look::best());
    assert!(lines[4].contains("no disk is attached"), "{lines:#?}");
}

#[test]
fn what_a_terminal_obeys_does_not_reach_it() {
    let mut rows = host();
    rows[0].name = "evil\x1b]0;title\x07\u{202e}name".into();
    rows[0].silent = Some("why\x1b[2J".into());
    rows[0].standing = Standing::Silent;
    if let Some(key) = &mut rows[0].key {
        key.url = "https://x\x1b[31m/keys".into();
    }
    let mut app = app(&rows);
    app.selected = Some(rows[0].id);
    let size = (200, 60);
    let mut all = shown(&mut app, size, Look::best()).join("\n");
    press(&mut app, &[KeyCode::Enter]);
    all += &shown(&mut app, size, Look::best()).join("\n");
    assert!(all.contains("evil"));
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!all.contains(obeyed), "{all:?}");
}

#[test]
fn a_pause_keeps_what_was_seen_and_the_interval_has_bounds() {
    let mut app = app(&host());
    press(&mut app, &[KeyCode::Char('p')]);
    app.take(Sampled::Host(Snapshot {
        time: now(),
        rows: Err("gone".into()),
    }));
    let lines = shown(&mut app, (80, 24), Look::best());
    assert!(line(&lines, "db-primary").contains("23.7k"));
    press(&mut app, &[KeyCode::Char('p')]);
    app.take(Sampled::Host(Snapshot {
        time: now(),
        rows: Err("gone".into()),
    }));
    let lines = shown(&mut app, (80, 24), Look::best());
    assert!(lines[4].contains("gone"), "{lines:#?}");
    for _ in 0..9 {
        press(&mut app, &[KeyCode::Char('-')]);
    }
    assert_eq!(app.interval.as_millis(), 500);
    let longest = press(&mut app, &[KeyCode::Char('+'); 12]);
    let minute = std::time::Duration::from_secs(60);
    assert_eq!(longest, Some(Action::Tell(Command::Interval(minute))));
}

#[test]
fn control_keys_end_stop_and_redraw() {
    let mut app = app(&host());
    let mut control = |c| app.key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
    assert_eq!(control('c'), Some(Action::Quit));
    assert_eq!(control('z'), Some(Action::Suspend));
    assert_eq!(control('l'), Some(Action::Redraw));
    assert_eq!(control('x'), None);
}
