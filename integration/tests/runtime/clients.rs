//! Programs that call a runtime: podman, buildah and dockerd.
