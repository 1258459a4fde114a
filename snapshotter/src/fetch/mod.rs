//! Registry access: references, credentials, hosts, range requests.
