//! Something that is done and takes time, and what it is a part of.

use std::borrow::Cow;
use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Status, TraceContextExt, Tracer};
use opentelemetry::{Context, ContextGuard, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;

pub use opentelemetry::trace::SpanKind;

use crate::tracing::tracer;

/// The header, and the key, by which what something is a part of goes along (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";
/// The attribute of an error's code.
const ERROR_TYPE: &str = "error.type";

/// Something that is done, from now until this is dropped; nothing where nothing is traced.
pub struct Span(Option<Context>);

impl Span {
    /// Begins a part of what this thread does.
    pub fn begin(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of_kind(SpanKind::Internal, name)
    }

    /// As [`Span::begin`], of something that another process is asked to do.
    pub fn asking(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of_kind(SpanKind::Client, name)
    }

    /// Begins what somebody asks for, as a part of what that one does: `parent` is what [`Span::traceparent`] was
    /// there. What is no such thing begins a trace of its own.
    pub fn asked_by(
        parent: Option<&str>,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        let Some(_) = tracer() else {
            return Self(None);
        };
        let known = parent.map(|parent| (TRACEPARENT.to_owned(), parent.to_owned()));
        let known: HashMap<String, String> = known.into_iter().collect();
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &known);
        Self::within(&parent, kind, name)
    }

    /// Begins what a command does, as a part of what has started the command, if the variable `TRACEPARENT` says that.
    pub fn of_command(name: impl Into<Cow<'static, str>>) -> Self {
        let parent = std::env::var("TRACEPARENT").ok();
        Self::asked_by(parent.as_deref(), SpanKind::Internal, name)
    }

    /// Nothing that anybody traces.
    pub fn none() -> Self {
        Self(None)
    }

    fn of_kind(kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Self {
        match tracer() {
            Some(_) => Self::within(&Context::current(), kind, name),
            None => Self(None),
        }
    }

    fn within(parent: &Context, kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Self {
        Self(tracer().map(|tracer| {
            let begun = tracer
                .span_builder(name)
                .with_kind(kind)
                .start_with_context(tracer, parent);
            parent.with_span(begun)
        }))
    }

    /// Says something of it: a name, a number, a code; never a key, a token or what a disk holds.
    pub fn set(&self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context
                .span()
                .set_attribute(KeyValue::new(attribute, value));
        }
    }

    /// It has failed. The message of the error stays on this host.
    pub fn failed(&self, code: &str) {
        if let Some(context) = &self.0 {
            self.set(ERROR_TYPE, code.to_owned());
            context.span().set_status(Status::error(code.to_owned()));
        }
    }

    /// What it came to: says that it has failed, if it has, by the code of the error.
    ///
    /// # Errors
    /// That one.
    pub fn came_to<T, E>(
        &self,
        outcome: Result<T, E>,
        code: impl FnOnce(&E) -> &str,
    ) -> Result<T, E> {
        outcome.inspect_err(|error| self.failed(code(error)))
    }

    /// It is done by now.
    pub fn end(&self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }

    /// Has all that this thread begins be a part of it, until the guard is dropped.
    pub fn enter(&self) -> Entered {
        Entered {
            _guard: self.0.clone().map(Context::attach),
        }
    }

    /// What another process is told of it, of which its own spans are parts then; `None` where nothing is traced.
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().and_then(traceparent_of)
    }

    /// The same of what this thread does at the moment.
    pub fn current_traceparent() -> Option<String> {
        tracer().and_then(|_| traceparent_of(&Context::current()))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end();
    }
}

/// This thread does what a span is of, until this is dropped.
pub struct Entered {
    _guard: Option<ContextGuard>,
}

fn traceparent_of(context: &Context) -> Option<String> {
    let mut told = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut told);
    told.remove(TRACEPARENT)
}
