//! The tutorial, with the guest that it boots.

use std::path::Path;
use std::process::Command;

use test_support::{expect_success, program, scratch, text};

use crate::images;

#[test]
fn the_tutorial_is_followed_with_a_guest() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tutorial");
    let mut follow = Command::new(script);
    follow
        .args(["--program", text(program())])
        .args(["--guest", text(&images::bootable_disk())])
        .env("TMPDIR", scratch());
    let followed = expect_success(&mut follow).stdout;
    let followed = String::from_utf8(followed).expect("text");
    assert!(
        followed.contains("grep -o login: console.log"),
        "{followed}"
    );
}
