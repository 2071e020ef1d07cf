//! What a template may have at most. Where Azure documents a limit, it is Azure's.

use std::time::Duration;

/// Bytes of a request.
pub const MAX_BODY: usize = 4 << 20;
/// Values in a request, estimated before it is parsed: a tree takes many times the memory of its text.
pub const MAX_NODES: usize = 500_000;
/// Levels of objects and arrays in a request, and in what an expression gives.
pub const MAX_DEPTH: usize = 100;
/// Parameters of a template.
pub const MAX_PARAMETERS: usize = 256;
/// Variables of a template.
pub const MAX_VARIABLES: usize = 512;
/// Resources of a template, those of loops and nested ones included.
pub const MAX_RESOURCES: usize = 800;
/// Outputs of a template.
pub const MAX_OUTPUTS: usize = 64;
/// Iterations of a loop over properties, variables or outputs.
pub const MAX_ITERATIONS: u64 = 800;
/// Elements that `range` gives.
pub const MAX_RANGE: i64 = 10_000;
/// Characters of an expression.
pub const MAX_EXPRESSION: usize = 24_576;
/// Calls and indices within each other in an expression.
pub const MAX_EXPRESSION_DEPTH: usize = 64;
/// Values and expressions within each other while they are evaluated, through variables, parameters and user-defined
/// functions: each takes a few KiB of the stack.
pub const MAX_EVALUATION_DEPTH: usize = 192;
/// Memory of one value, and of all arguments of a call.
pub const MAX_VALUE: usize = 8 << 20;
/// Memory of all values that a deployment makes, one after the other.
pub const MAX_TOTAL: usize = 128 << 20;
/// Of these, the memory that each deployment has for itself.
pub const OWN: usize = 4 << 20;
/// The memory that all deployments of a process together have besides.
pub const MAX_SHARED: usize = 256 << 20;
/// Expressions and elements that a deployment looks at.
pub const MAX_STEPS: usize = 10_000_000;
/// How long a deployment computes, not counting the time in which its resources are made: steps differ.
pub const MAX_TIME: Duration = Duration::from_secs(5);
/// Resources outside of the template whose state `reference` asks for.
pub const MAX_READS: usize = 800;
/// Characters of an error's message.
pub const MAX_MESSAGE: usize = 4_096;
