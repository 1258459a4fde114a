//! The file system tree: mounts of every kind, devices, masks.
