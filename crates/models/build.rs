//! Tells the files of `volume` that are compiled here that their atomics are loom's.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cfg=loom");
}
