//! Containers that attack the runtime, and a runtime that is killed at every step.
