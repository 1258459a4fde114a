//! What a process is given: identity, limits, scheduling, filters, labels, hooks.
