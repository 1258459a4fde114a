//! Namespaces, user namespaces and users who are not root.
