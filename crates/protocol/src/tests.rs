//! Both ends against each other, and each against an other end that does not keep to the protocol.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use keys::{Dek, DekStack};
use uuid::Uuid;
use volume::RuntimeMap;
use volume::store::{LayerFile, StackFiles};

use crate::*;

use super::encoding_tests::{framed, setup};

#[test]
fn what_a_version_does_not_have_is_refused_by_name() {
    for (json, name) in [
        (r#"{"number":1,"command":"fly"}"#, "unknown variant `fly`"),
        (
            r#"{"number":1,"command":{"resize":{"size":1,"why":2}}}"#,
            "unknown field `why`",
        ),
        (
            r#"{"number":1,"command":"quiesce","priority":1}"#,
            "unknown field `priority`",
        ),
        (r#"{"number":1,"command":{"quiesce":{}}}"#, "invalid type"),
        (
            r#"{"number":1,"command":{"set-limits":{"latency":1}}}"#,
            "unknown field `latency`",
        ),
    ] {
        let error = decode::<Request>(&framed(json)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    for (json, name) in [
        (r#"{"event":"on-fire"}"#, "unknown variant `on-fire`"),
        (r#"{"question":"who"}"#, "unknown variant `question`"),
        (
            r#"{"event":{"failed":{"why":"a","when":1}}}"#,
            "unknown field `when`",
        ),
        (r#"{"event":{"\u001b[2J":1}}"#, "unknown variant `[2J`"),
    ] {
        let error = decode::<Message>(&framed(json)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text(mut file: &File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// The files and keys of a disk of three layers.
fn disk() -> (DiskFiles, DekStack) {
    let open = |text| LayerFile::from_file(file(text)).unwrap();
    let lower = vec![open("lower"), open("bottom")];
    let files = DiskFiles {
        files: StackFiles::new(open("data"), open("map"), lower),
        runtime: RuntimeMap::from_file(file("runtime")),
        lower_maps: vec![file("lower map"), file("bottom map")],
    };
    let deks = DekStack::from(Dek::generate().unwrap())
        .pushed(Dek::generate().unwrap())
        .pushed(Dek::generate().unwrap());
    (files, deks)
}

/// Both ends, after their hellos.
fn ends() -> (Commands, Messages, DataPlaneEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut messages = Messages::new(ours.try_clone().unwrap());
    let commands = Commands::new(ours).unwrap();
    let data_plane = DataPlaneEnd::open(theirs).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let version = messages.greet(deadline).unwrap();
    assert_eq!(version, data_plane.version());
    (commands, messages, data_plane)
}

/// The data plane's end, and an attach process that has said its hello and `bytes`.
fn said(bytes: &[u8]) -> (DataPlaneEnd, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&encode(&Hello { hello: SUPPORTED }).unwrap())
        .unwrap();
    ours.write_all(bytes).unwrap();
    let end = DataPlaneEnd::open(theirs).unwrap();
    (end, ours)
}

/// The next command but the one that comes before the disk.
fn receive(from: &DataPlaneEnd) -> Received {
    loop {
        let received = from.receive().unwrap().unwrap();
        if received.command != (Command::Prepare { queues: 2 }) {
            return received;
        }
    }
}

#[test]
fn files_and_keys_travel_with_their_commands() {
    let (commands, mut messages, data_plane) = ends();
    let (files, deks) = disk();
    commands
        .open()
        .serve(setup(3), &files, Some(&deks))
        .unwrap();
    let layers = vec![Uuid::from_u128(7); 3];
    commands.restore_key(layers.clone(), &deks).unwrap();
    commands.set_limits(Limits::default()).unwrap();

    let Received {
        number,
        command,
        cargo,
    } = receive(&data_plane);
    assert_eq!((number, command), (1, Command::Serve(setup(3))));
    let (files, keys) = cargo.disk().unwrap();
    assert_eq!(keys.get(2).unwrap().expose(), deks.get(2).unwrap().expose());
    assert_eq!(text(files.files.data.file()), "data");
    assert_eq!(text(files.files.map.file()), "map");
    assert_eq!(text(files.files.lower[1].file()), "bottom");
    assert_eq!(text(&files.lower_maps[0]), "lower map");
    data_plane.reply(1, Reply::Serving).unwrap();

    let restore = receive(&data_plane);
    assert_eq!(restore.command, Command::RestoreKey { layers });
    let keys = restore.cargo.keys().unwrap();
    assert_eq!(keys.get(1).unwrap().expose(), deks.get(1).unwrap().expose());
    let limits = receive(&data_plane);
    assert_eq!(limits.number, 3);
    assert!(limits.cargo.keys().is_err());
    let serving = Message::Reply {
        number: 1,
        reply: Reply::Serving,
    };
    assert_eq!(messages.take(), Heard::Messages(vec![serving]));
    drop(commands);
    drop(messages);
    assert!(matches!(
        data_plane.receive(),
        Err(ProtocolError::Ended(Peer::AttachProcess))
    ));
}

#[test]
fn files_that_are_not_the_disks_are_refused_and_commands_go_on() {
    let (commands, _messages, data_plane) = ends();
    let (files, deks) = disk();
    let mut fewer = disk().0;
    fewer.lower_maps.pop();
    for (layers, files) in [(3, &fewer), (2, &files)] {
        let opening = commands.open();
        let mut keys = DekStack::new(Dek::generate().unwrap(), Vec::new());
        for _ in 1..layers {
            keys = keys.pushed(Dek::generate().unwrap());
        }
        opening.serve(setup(layers), files, Some(&keys)).unwrap();
        let error = receive(&data_plane).cargo.disk().err().unwrap();
        assert!(matches!(error, ProtocolError::Cargo(_)), "{error}");
    }
    commands.restore_key(vec![Uuid::nil(); 3], &deks).unwrap();
    assert!(receive(&data_plane).cargo.keys().is_ok());
}

#[test]
fn a_disk_whose_key_is_revoked_is_served_without_keys() {
    let (commands, _messages, data_plane) = ends();
    let (files, deks) = disk();
    let revoked = Setup {
        revoked: Some(OnRevoke::Pause),
        ..setup(3)
    };
    let mixed = commands.open().serve(revoked.clone(), &files, Some(&deks));
    assert!(matches!(mixed, Err(ProtocolError::Cargo(_))));
    let none = commands.open().serve(setup(3), &files, None);
    assert!(matches!(none, Err(ProtocolError::Cargo(_))));
    commands.open().serve(revoked, &files, None).unwrap();
    commands.set_limits(Limits::default()).unwrap();
    let served = receive(&data_plane);
    assert!(served.cargo.files(3).is_ok());
    assert_eq!(receive(&data_plane).number, 2);
}

/// One that is prepared gets its disk at once, under the next number.
#[test]
fn a_data_plane_that_is_prepared_gets_its_disk() {
    let (commands, _messages, data_plane) = ends();
    drop(data_plane);
    commands.ended();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let other = std::thread::spawn(move || {
        let data_plane = DataPlaneEnd::open(theirs).unwrap();
        let prepare = data_plane.receive().unwrap().unwrap();
        assert_eq!(prepare.command, Command::Prepare { queues: 2 });
        let program = Line::from("1");
        let prepared = Reply::Prepared { program };
        data_plane.reply(prepare.number, prepared).unwrap();
        let served = data_plane.receive().unwrap().unwrap();
        (served.number, served.command)
    });
    let mut messages = Messages::new(ours.try_clone().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let program = prepare(&ours, &mut messages, 2, deadline).unwrap();
    assert_eq!(program.as_str(), "1");
    let (files, deks) = disk();
    let opening = commands.open_prepared(ours);
    opening.serve(setup(3), &files, Some(&deks)).unwrap();
    let served = other.join().unwrap();
    assert_eq!(served, (1, Command::Serve(setup(3))));
}

#[test]
fn no_key_is_in_what_is_printed() {
    let (commands, _messages, data_plane) = ends();
    let (files, deks) = disk();
    commands
        .open()
        .serve(setup(3), &files, Some(&deks))
        .unwrap();
    commands.restore_key(vec![Uuid::nil(); 3], &deks).unwrap();
    let mut printed = format!("{commands:?}{data_plane:?}");
    for _ in 0..2 {
        printed += &format!("{:?}", receive(&data_plane));
    }
    for dek in deks.iter() {
        for part in dek.expose().windows(4) {
            let hex: String = part.iter().map(|b| format!("{b:02x}")).collect();
            let list = part
                .iter()
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            assert!(
                !printed.contains(&hex) && !printed.contains(&list),
                "{printed}"
            );
        }
    }
    assert!(printed.contains("Cargo { files: 7, keys: 3 }"), "{printed}");
}

#[test]
fn a_command_of_no_version_is_refused_and_the_next_one_is_received() {
    let unknown = framed(r#"{"number":7,"command":{"migrate":{"to":"there"}}}"#);
    let nothing = framed(r#"[]"#);
    let known = framed(r#"{"number":8,"command":"resume"}"#);
    let (data_plane, ours) = said(&[unknown, nothing, known].concat());
    assert!(data_plane.receive().unwrap().is_none());
    assert!(data_plane.receive().unwrap().is_none(), "it has no number");
    assert_eq!(receive(&data_plane).number, 8);
    let mut messages = Messages::new(ours);
    messages
        .greet(Instant::now() + Duration::from_secs(20))
        .unwrap();
    let heard = messages.take();
    let Heard::Messages(heard) = heard else {
        panic!("{heard:?}");
    };
    match &heard[..] {
        [
            Message::Reply {
                number: 7,
                reply: Reply::Refused { why },
            },
        ] => assert!(why.as_str().contains("unknown variant `migrate`"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_without_layers_or_with_too_many_is_refused() {
    let restore = |layers: usize| {
        let request = Request {
            number: 1,
            command: Command::RestoreKey {
                layers: vec![Uuid::nil(); layers],
            },
        };
        encode(&request).unwrap()
    };
    let resume = framed(r#"{"number":2,"command":"resume"}"#);
    let (data_plane, _ours) = said(&[restore(0), resume].concat());
    assert!(data_plane.receive().unwrap().is_none());
    assert_eq!(receive(&data_plane).command, Command::Resume);
    let (data_plane, _ours) = said(&restore(33));
    assert!(matches!(data_plane.receive(), Err(ProtocolError::Cargo(_))));
}

#[test]
fn what_is_no_frame_ends_the_data_planes_end() {
    let whole = framed(r#"{"number":1,"command":"resume"}"#);
    let cut = |len: usize| whole[..len].to_vec();
    let too_long = format!("65537 {}\n", "x".repeat(65537));
    for (bytes, close) in [
        (cut(3), true),
        (cut(20), true),
        (cut(whole.len() - 1), true),
        (vec![0xff; 200], false),
        (b"limits {}\nlimits {}\n".to_vec(), false),
        (b"00002 {}x\n".to_vec(), false),
        (too_long.into_bytes(), false),
    ] {
        let (data_plane, ours) = said(&bytes);
        if close {
            ours.shutdown(Shutdown::Write).unwrap();
        }
        let error = data_plane.receive().unwrap_err();
        let expected = matches!(error, ProtocolError::NoFrame | ProtocolError::TooLong(_));
        assert!(expected, "{error}");
    }
}

#[test]
fn keys_that_are_cut_off_end_the_data_planes_end() {
    let request = Request {
        number: 1,
        command: Command::RestoreKey {
            layers: vec![Uuid::nil(); 2],
        },
    };
    let bytes = [encode(&request).unwrap(), (0..100).collect()].concat();
    let (data_plane, ours) = said(&bytes);
    drop(ours);
    assert!(matches!(data_plane.receive(), Err(ProtocolError::Key(_))));
}

#[test]
fn an_attach_process_of_an_unknown_version_is_refused_by_name() {
    let hello = Versions {
        lowest: 900,
        highest: 900,
    };
    for (bytes, expected) in [
        (
            encode(&Hello { hello }).unwrap(),
            format!("the attach process speaks protocol 900, this program {SUPPORTED}"),
        ),
        (
            framed(r#"{"hello":{"lowest":1,"highest":1,"name":"x"}}"#),
            "not a message of this protocol: unknown field `name`".into(),
        ),
        (
            framed(r#"{"number":0,"command":"quiesce"}"#),
            "not a message of this protocol: unknown field `number`".into(),
        ),
        (
            b"limits {}\n".to_vec(),
            "what came is not a whole frame".into(),
        ),
    ] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&bytes).unwrap();
        let error = DataPlaneEnd::open(theirs).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
}
