//! What the sending half of the command channel keeps to.

use super::*;

fn commands() -> (Commands, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Commands::new(ours).unwrap(), theirs)
}

#[test]
fn answers_go_to_whom_they_are_for() {
    let (commands, _theirs) = commands();
    let ask = |command| commands.ask_later(command, Cargo::None).unwrap();
    drop(ask(Command::Quiesce));
    let (resume, progress) = (ask(Command::Resume), ask(Command::CopyUpProgress));
    commands.revoke_key(OnRevoke::Error).unwrap();
    let swap = ask(Command::Quiesce);
    let answer = |number, reply| commands.answered(number, reply).unwrap();
    assert!(answer(0, Reply::refused(&"why")).is_none());
    assert!(answer(1, Reply::Resumed).is_none());
    assert_eq!(resume.recv().unwrap(), Reply::Resumed);
    let idle = Reply::CopyUpProgress(CopyProgress::default());
    assert!(answer(2, idle.clone()).is_none());
    assert_eq!(progress.recv().unwrap(), idle);
    let given_back = answer(3, Reply::KeyDestroyed);
    let expected = (CommandKind::RevokeKey, Reply::KeyDestroyed);
    assert_eq!(given_back, Some(expected));
    answer(4, Reply::refused(&"why"));
    assert_eq!(swap.recv().unwrap(), Reply::refused(&"why"));
    let lost = ask(Command::StopCopyUp);
    commands.ended();
    assert!(lost.recv().is_err());
    let ended = commands.resume();
    assert!(matches!(ended, Err(ProtocolError::Ended(Peer::DataPlane))));
    assert!(commands.answered(5, Reply::CopyUpStopped).is_ok());
}

#[test]
fn a_data_plane_that_answers_nothing_is_told_nothing_more() {
    let (commands, mut theirs) = commands();
    let drain = std::thread::spawn(move || io::copy(&mut theirs, &mut io::sink()));
    for _ in 0..MAX_UNANSWERED {
        commands.disconnect(1).unwrap();
    }
    let silent = commands.disconnect(1);
    assert!(matches!(
        silent,
        Err(ProtocolError::Silent(Peer::DataPlane))
    ));
    commands.answered(0, Reply::Disconnected).unwrap();
    commands.disconnect(1).unwrap();
    commands.end().unwrap();
    drain.join().unwrap().unwrap();
}

#[test]
fn a_data_plane_that_ended_is_found_by_its_silence() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut messages = crate::Messages::new(ours.try_clone().unwrap());
    let commands = Commands::new(ours).unwrap();
    let ended = messages.greet(std::time::Instant::now() + PATIENCE);
    assert!(matches!(ended, Err(ProtocolError::Ended(Peer::DataPlane))));
    let ended = commands.resume();
    assert!(matches!(ended, Err(ProtocolError::Ended(Peer::DataPlane))));
}

#[test]
fn commands_are_kept_back_only_when_all_are_answered() {
    let (commands, theirs) = commands();
    let _asked = commands.ask_later(Command::Resume, Cargo::None).unwrap();
    assert!(commands.freeze().is_none());
    commands.answered(0, Reply::Resumed).unwrap();
    let frozen = commands.freeze().unwrap();
    assert_eq!(frozen.sent(), 1);
    let adopted = Commands::adopt(theirs, frozen.sent());
    drop(frozen);
    let _asked = adopted.ask_later(Command::Resume, Cargo::None).unwrap();
    assert!(adopted.answered(1, Reply::Resumed).is_ok());
    commands.end().unwrap();
    assert!(commands.freeze().is_none(), "it is to end");
}

#[test]
fn another_data_plane_begins_anew() {
    let (commands, theirs) = commands();
    let lost = commands.ask_later(Command::Quiesce, Cargo::None).unwrap();
    drop(theirs);
    commands.ended();
    assert!(lost.recv().is_err());
    let (ours, _theirs) = UnixStream::pair().unwrap();
    drop(commands.open_again(ours).unwrap());
    assert!(!commands.has_ended() && !commands.is_ending());
    let asked = commands.ask_later(Command::Resume, Cargo::None).unwrap();
    commands.answered(0, Reply::Resumed).unwrap();
    assert_eq!(asked.recv().unwrap(), Reply::Resumed);
    commands.end().unwrap();
    assert!(commands.is_ending());
}

#[test]
fn an_answer_to_another_command_is_refused() {
    for (number, reply, why) in [
        (1, Reply::Quiesced, "the next answer is that of 0 (quiesce)"),
        (0, Reply::Resumed, "answers command 0 with \"resumed\""),
    ] {
        let (commands, _theirs) = commands();
        let _waiting = commands.ask_later(Command::Quiesce, Cargo::None).unwrap();
        let error = commands.answered(number, reply).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let (commands, _theirs) = commands();
    let error = commands.answered(0, Reply::Resumed).unwrap_err();
    assert!(error.to_string().contains("no command waits"), "{error}");
}
