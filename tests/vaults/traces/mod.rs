//! Traces over OTLP: what is one, what is in it, and that no collector holds anything up.

mod collector;
mod harmless;
mod one_trace;
