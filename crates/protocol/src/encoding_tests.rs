//! How version 1 is encoded.

use uuid::Uuid;

use crate::*;

fn stack(layers: u128) -> Stack {
    let layer = |id| StackLayer {
        id: Uuid::from_u128(id),
        origin: Uuid::from_u128(1),
        size: 4096,
        data_unit: 512,
    };
    Stack {
        disk: Uuid::from_u128(1),
        layers: (0..layers).map(layer).collect(),
    }
}

pub(crate) fn setup(layers: u128) -> Setup {
    Setup {
        stack: stack(layers),
        read_only: true,
        discard: Discard::Overwrite,
        on_full: OnFull::Error,
        logical_sector_size: 512,
        num_queues: 2,
        queue_size: 64,
        memory: 1 << 20,
        huge_pages: true,
        poll_us: 32,
        crypto_threads: 0,
        cpus: Vec::new(),
        limits: Limits {
            iops: Some(5),
            ..Limits::default()
        },
        serial: "disk".into(),
        write_through: false,
        listening: true,
        revoked: None,
        restart: Some(Restart {
            kept: 7,
            short_lives: 2,
            resized: true,
        }),
    }
}

/// Every command of version 1, and its encoding.
fn commands() -> Vec<(Command, String)> {
    let id = "00000000-0000-0000-0000-00000000000";
    let layer = format!(r#"{{"id":"{id}0","origin":"{id}1","size":4096,"data_unit":512}}"#);
    let stack_json = format!(r#"{{"disk":"{id}1","layers":[{layer}]}}"#);
    let limits = r#"{"iops":5,"iops_burst":null,"bandwidth":null,"bandwidth_burst":null}"#;
    let setup_json = format!(
        r#"{{"stack":{stack_json},"read_only":true,"discard":"overwrite","on_full":"error","logical_sector_size":512,"num_queues":2,"queue_size":64,"memory":1048576,"huge_pages":true,"poll_us":32,"serial":"disk","limits":{limits},"write_through":false,"listening":true,"revoked":null,"restart":{{"kept":7,"short_lives":2,"resized":true}}}}"#
    );
    let copy_up = CopyRequest {
        drop: 2,
        rate: Some(9),
    };
    let on_revoke = OnRevoke::Pause;
    let layers = vec![Uuid::from_u128(7)];
    vec![
        (
            Command::Prepare { queues: 2 },
            r#"{"prepare":{"queues":2}}"#.into(),
        ),
        (
            Command::Serve(setup(1)),
            format!(r#"{{"serve":{setup_json}}}"#),
        ),
        (
            Command::Wait(setup(1)),
            format!(r#"{{"wait":{setup_json}}}"#),
        ),
        (
            Command::TakeDisk(setup(1)),
            format!(r#"{{"take-disk":{setup_json}}}"#),
        ),
        (Command::LetGo, r#""let-go""#.into()),
        (
            Command::SetLimits(setup(1).limits),
            format!(r#"{{"set-limits":{limits}}}"#),
        ),
        (
            Command::Resize { size: 8192 },
            r#"{"resize":{"size":8192}}"#.into(),
        ),
        (
            Command::RevokeKey { on_revoke },
            r#"{"revoke-key":{"on_revoke":"pause"}}"#.into(),
        ),
        (
            Command::RestoreKey { layers },
            format!(r#"{{"restore-key":{{"layers":["{id}7"]}}}}"#),
        ),
        (Command::Quiesce, r#""quiesce""#.into()),
        (
            Command::SwapVolume(stack(1)),
            format!(r#"{{"swap-volume":{stack_json}}}"#),
        ),
        (Command::Resume, r#""resume""#.into()),
        (
            Command::StartCopyUp(copy_up),
            r#"{"start-copy-up":{"drop":2,"rate":9}}"#.into(),
        ),
        (Command::StopCopyUp, r#""stop-copy-up""#.into()),
        (Command::CopyUpProgress, r#""copy-up-progress""#.into()),
        (
            Command::Disconnect { connection: 3 },
            r#"{"disconnect":{"connection":3}}"#.into(),
        ),
        (Command::HandOver, r#""hand-over""#.into()),
    ]
}

/// Every answer of version 1, and its encoding.
fn replies() -> Vec<(Reply, &'static str)> {
    let progress = CopyProgress {
        state: CopyState::Running,
        bytes_done: 1,
        bytes_total: 2,
        error: Some("why".into()),
    };
    vec![
        (
            Reply::Prepared {
                program: "1.2.3".into(),
            },
            r#"{"prepared":{"program":"1.2.3"}}"#,
        ),
        (Reply::Serving, r#""serving""#),
        (Reply::Waiting, r#""waiting""#),
        (Reply::DiskTaken, r#""disk-taken""#),
        (Reply::DiskLetGo, r#""disk-let-go""#),
        (Reply::LimitsSet, r#""limits-set""#),
        (
            Reply::Resized { size: 8192 },
            r#"{"resized":{"size":8192}}"#,
        ),
        (Reply::KeyDestroyed, r#""key-destroyed""#),
        (Reply::KeyRestored, r#""key-restored""#),
        (Reply::Quiesced, r#""quiesced""#),
        (Reply::VolumeSwapped, r#""volume-swapped""#),
        (Reply::Resumed, r#""resumed""#),
        (Reply::CopyUpStarted, r#""copy-up-started""#),
        (Reply::CopyUpStopped, r#""copy-up-stopped""#),
        (
            Reply::CopyUpProgress(progress),
            r#"{"copy-up-progress":{"state":"running","bytes_done":1,"bytes_total":2,"error":"why"}}"#,
        ),
        (Reply::Disconnected, r#""disconnected""#),
        (Reply::HandedOver, r#""handed-over""#),
        (Reply::refused(&"why"), r#"{"refused":{"why":"why"}}"#),
    ]
}

/// Every event of version 1, and its encoding.
fn events() -> Vec<(Event, String)> {
    let file = tempfile::tempfile().unwrap();
    let id = FileId::of(&file.metadata().unwrap());
    let files = serde_json::to_string(&id).unwrap();
    assert!(files.starts_with(r#"{"device":"#) && files.contains(r#","inode":"#));
    let memory = FrontendMemory {
        connection: 1,
        files: vec![id],
    };
    let rings = |rings| Event::Rings {
        rings,
        connection: 3,
    };
    let rings_json = |what| format!(r#"{{"rings":{{"rings":"{what}","connection":3}}}}"#);
    let why = || "why".into();
    let (data, map) = (SyncedFile::Data, SyncedFile::Map);
    vec![
        (
            Event::FrontendMemory(memory),
            format!(r#"{{"frontend-memory":{{"connection":1,"files":[{files}]}}}}"#),
        ),
        (Event::MemoryNotShared, r#""memory-not-shared""#.into()),
        (rings(RingsDo::Rest), rings_json("rest")),
        (rings(RingsDo::Run), rings_json("run")),
        (rings(RingsDo::Wait), rings_json("wait")),
        (Event::StorageFull, r#""storage-full""#.into()),
        (Event::StorageOk, r#""storage-ok""#.into()),
        (
            Event::SyncFailed {
                file: data,
                why: why(),
            },
            r#"{"sync-failed":{"file":"data","why":"why"}}"#.into(),
        ),
        (
            Event::SyncFailed {
                file: map,
                why: why(),
            },
            r#"{"sync-failed":{"file":"map","why":"why"}}"#.into(),
        ),
        (
            Event::Failed { why: why() },
            r#"{"failed":{"why":"why"}}"#.into(),
        ),
    ]
}

pub(crate) fn framed(json: &str) -> Vec<u8> {
    format!("{:05} {json}\n", json.len()).into_bytes()
}

/// Whoever changes this has made another version: data planes that run speak this one.
#[test]
fn version_1_is_encoded_like_this() {
    let hello = Hello {
        hello: Versions {
            lowest: 1,
            highest: 1,
        },
    };
    let json = framed(r#"{"hello":{"lowest":1,"highest":1}}"#);
    assert_eq!(encode(&hello).unwrap(), json);
    assert_eq!(decode::<Hello>(&json).unwrap(), hello);
    for (command, json) in commands() {
        let json = framed(&format!(r#"{{"number":4,"command":{json}}}"#));
        let request = Request { number: 4, command };
        assert_eq!(encode(&request).unwrap(), json, "{request:?}");
        assert_eq!(decode::<Request>(&json).unwrap(), request);
    }
    for (reply, json) in replies() {
        let json = framed(&format!(r#"{{"reply":{{"number":4,"reply":{json}}}}}"#));
        let message = Message::Reply { number: 4, reply };
        assert_eq!(encode(&message).unwrap(), json, "{message:?}");
        assert_eq!(decode::<Message>(&json).unwrap(), message);
    }
    for (event, json) in events() {
        let json = framed(&format!(r#"{{"event":{json}}}"#));
        let message = Message::Event(event);
        assert_eq!(encode(&message).unwrap(), json, "{message:?}");
        assert_eq!(decode::<Message>(&json).unwrap(), message);
    }
}

#[test]
fn each_command_has_one_answer_and_one_name() {
    let replies = replies();
    for (command, json) in commands() {
        let kind = command.kind();
        assert!(json.contains(&format!(r#""{kind}""#)), "{kind}");
        let answers = replies.iter().filter(|(reply, _)| reply.answers(kind));
        assert_eq!(answers.count(), 2, "{kind}: its own and a refusal");
    }
    for (reply, json) in replies {
        assert!(json.contains(&format!(r#""{}""#, reply.name())), "{json}");
    }
}
