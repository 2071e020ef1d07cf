//! What grows: each operation for small and large disks, empty and full, of one layer and of many; for a catalog of
//! one disk and of 10,000; and what the maps of an image take of memory, by how many of its clones are attached.
//!
//! A full disk is one whose maps say that every block is data, as in [`crate::attach`]: the data files are holes.
//! So what a read costs here is all but the storage's part.

mod catalog;
mod disk;
mod sharing;

use serde_json::json;

use crate::backends::Place;
use crate::machine::available;
use crate::report::Report;

use disk::{Content, Shape};

const SIZES: [(&str, u64); 3] = [("1GiB", 1 << 30), ("1TiB", 1 << 40), ("15TiB", 15 << 40)];
const LAYERS: [u32; 3] = [1, 8, 32];
/// Of a full disk of 15 TiB: 32 maps of 960 MiB would take 30 GiB.
const MAX_LARGE_LAYERS: u32 = 16;
/// Bytes that are to stay free.
const SPARE: u64 = 4 << 30;

/// One of the parts, or all.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// By size, content and layers
    Disks,
    /// By how many disks there are
    Catalog,
    /// Memory, by how many clones are attached
    Sharing,
}

/// Measures the parts with back-ends on `cpu`.
pub fn measure(parts: &[Part], disks: u32, place: &Place, cpu: usize, report: &mut Report) {
    for part in parts {
        match part {
            Part::Disks => measure_disks(place, cpu, report),
            Part::Catalog => catalog::measure(disks, place, report),
            Part::Sharing => sharing::measure(place, report),
        }
    }
}

fn measure_disks(place: &Place, cpu: usize, report: &mut Report) {
    for content in [Content::Empty, Content::Bottom, Content::Full] {
        for layers in LAYERS {
            for (name, bytes) in SIZES {
                let large = bytes == SIZES[2].1 && content == Content::Full;
                let layers = if large {
                    layers.min(MAX_LARGE_LAYERS)
                } else {
                    layers
                };
                // Of one layer the bottom is all.
                if content == Content::Bottom && layers == 1 {
                    continue;
                }
                let shape = Shape {
                    name,
                    bytes,
                    layers,
                    content,
                };
                if shape.map_bytes() + SPARE > available(place.dir) {
                    println!("{shape}: not measured, since its maps do not fit here");
                    continue;
                }
                disk::measure(&shape, place, cpu, report);
            }
        }
    }
}

/// A point of a curve: `what` costs `value` `unit` at `at` of the `axis`.
pub struct Point<'a> {
    pub what: &'a str,
    pub unit: &'a str,
    pub series: &'a str,
    pub axis: &'a str,
    pub at: u32,
    pub value: f64,
}

impl Point<'_> {
    pub fn note(&self, report: &mut Report) {
        let Self {
            what,
            unit,
            series,
            axis,
            at,
            value,
        } = self;
        println!("  {what:24} {series:24} {at:>6} {axis:7} {value:>10.2} {unit}");
        let mut note = json!({ "growth": what, "unit": unit, "series": series, "value": value });
        note[*axis] = json!(at);
        report.note(note);
    }
}
