//! Cgroups: limits, updates, statistics, freezing, delegation.
