//! Mount options: words of `config.json` → attribute bits of the mount API.

use crate::sys::MountAttr;

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// What the options of one mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Changes of the top mount.
    pub(crate) top: MountAttr,
    /// Changes of the whole tree (`rro`, `rnosuid`, …).
    pub(crate) deep: MountAttr,
    /// `bind` or `rbind` was given.
    pub(crate) bind: bool,
    /// `rbind` was given.
    pub(crate) recursive: bool,
    /// Changes of propagation (`MS_*`, and whether each reaches the whole tree), in their order:
    /// a mount can be the slave of one group and share with another.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// The tmpfs starts with what the directory below it holds.
    pub(crate) copy_up: bool,
    /// A source that is a symlink is made again at the target instead of being mounted.
    pub(crate) copy_symlink: bool,
    /// A source that is a symlink is bound itself.
    pub(crate) src_nofollow: bool,
    /// The target exists; if it is a symlink, it is what is mounted over.
    pub(crate) dest_nofollow: bool,
    /// `idmap` or `ridmap`.
    pub(crate) idmap: Option<IdmapOption>,
    /// `remount` was given.
    pub(crate) remount: bool,
    /// Flags of the file system itself (`sync`, `dirsync`, …).
    pub(crate) flags: Vec<&'static str>,
    /// Everything else: for the file system to understand.
    pub(crate) data: Vec<String>,
}

/// How `idmap` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdmapOption {
    /// `ridmap`: the whole tree.
    pub(crate) recursive: bool,
    /// What stood behind `=`: maps in crun's notation.
    pub(crate) maps: Option<String>,
}

enum Effect {
    Set(u64),
    Clear(u64),
    /// Replaces the access time mode.
    Atime(u64),
    SuperFlag(&'static str),
    Propagation(u64),
    Nothing,
}

/// Sorts the words; order matters only where a later word contradicts an earlier one.
pub(crate) fn parse(words: &[String]) -> MountOptions {
    let mut options = MountOptions::default();
    for word in words {
        match word.as_str() {
            "bind" => options.bind = true,
            "rbind" => (options.bind, options.recursive) = (true, true),
            "remount" => options.remount = true,
            "tmpcopyup" => options.copy_up = true,
            "copy-symlink" => options.copy_symlink = true,
            "src-nofollow" => options.src_nofollow = true,
            "dest-nofollow" => options.dest_nofollow = true,
            word => match idmap_option(word) {
                Some(idmap) => options.idmap = Some(idmap),
                None => apply_word(&mut options, word),
            },
        }
    }
    options
}

fn idmap_option(word: &str) -> Option<IdmapOption> {
    let (name, maps) = match word.split_once('=') {
        Some((name, maps)) => (name, Some(maps.to_owned())),
        None => (word, None),
    };
    let recursive = match name {
        "idmap" => false,
        "ridmap" => true,
        _ => return None,
    };
    Some(IdmapOption { recursive, maps })
}

fn apply_word(options: &mut MountOptions, word: &str) {
    if let Some(effect) = effect_of(word) {
        match effect {
            Effect::Propagation(kind) => options.propagation.push((kind, false)),
            Effect::SuperFlag(flag) => options.flags.push(flag),
            Effect::Nothing => {}
            effect => change(&mut options.top, &effect),
        }
        return;
    }
    match word
        .strip_prefix('r')
        .and_then(|rest| Some((rest, effect_of(rest)?)))
    {
        Some((_, Effect::Propagation(kind))) => options.propagation.push((kind, true)),
        Some((_, effect @ (Effect::Set(_) | Effect::Clear(_) | Effect::Atime(_)))) => {
            change(&mut options.deep, &effect);
        }
        _ => options.data.push(word.to_owned()),
    }
}

fn change(attr: &mut MountAttr, effect: &Effect) {
    match *effect {
        Effect::Set(bits) => {
            attr.set |= bits;
            attr.clear &= !bits;
        }
        Effect::Clear(bits) => {
            attr.clear |= bits;
            attr.set &= !bits;
        }
        Effect::Atime(mode) => {
            attr.clear |= ATIME_MASK;
            attr.set = attr.set & !ATIME_MASK | mode;
        }
        Effect::SuperFlag(_) | Effect::Propagation(_) | Effect::Nothing => {}
    }
}

fn effect_of(word: &str) -> Option<Effect> {
    Some(match word {
        "ro" => Effect::Set(RDONLY),
        "rw" => Effect::Clear(RDONLY),
        "nosuid" => Effect::Set(NOSUID),
        "suid" => Effect::Clear(NOSUID),
        "nodev" => Effect::Set(NODEV),
        "dev" => Effect::Clear(NODEV),
        "noexec" => Effect::Set(NOEXEC),
        "exec" => Effect::Clear(NOEXEC),
        "nodiratime" => Effect::Set(NODIRATIME),
        "diratime" => Effect::Clear(NODIRATIME),
        "nosymfollow" => Effect::Set(NOSYMFOLLOW),
        "symfollow" => Effect::Clear(NOSYMFOLLOW),
        "noatime" => Effect::Atime(NOATIME),
        "strictatime" => Effect::Atime(STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Effect::Atime(0),
        "sync" => Effect::SuperFlag("sync"),
        "dirsync" => Effect::SuperFlag("dirsync"),
        "lazytime" => Effect::SuperFlag("lazytime"),
        "mand" => Effect::SuperFlag("mand"),
        "private" => Effect::Propagation(libc::MS_PRIVATE),
        "shared" => Effect::Propagation(libc::MS_SHARED),
        "slave" => Effect::Propagation(libc::MS_SLAVE),
        "unbindable" => Effect::Propagation(libc::MS_UNBINDABLE),
        "defaults" | "async" | "nolazytime" | "nomand" | "silent" | "loud" | "iversion"
        | "noiversion" | "acl" | "noacl" => Effect::Nothing,
        _ => return None,
    })
}

/// Propagation named by `linux.rootfsPropagation`.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    parse(&[word.to_owned()]).propagation.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> MountOptions {
        parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_kept_apart_from_data() {
        let options = parsed(&["nosuid", "strictatime", "mode=755", "size=65536k", "sync"]);
        assert_eq!(options.top.set, NOSUID | STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
        assert_eq!(options.flags, ["sync"]);
    }

    #[test]
    fn the_last_word_wins() {
        let options = parsed(&["ro", "rw", "noatime", "relatime", "shared", "rslave"]);
        assert_eq!(
            (options.top.set, options.top.clear),
            (0, RDONLY | ATIME_MASK)
        );
        let both = [(libc::MS_SHARED, false), (libc::MS_SLAVE, true)];
        assert_eq!(options.propagation, both);
    }

    #[test]
    fn words_with_r_reach_the_whole_tree() {
        let options = parsed(&["rbind", "rro", "rnosuid", "rprivate"]);
        assert!(options.bind && options.recursive && options.top.is_noop());
        assert_eq!(options.deep.set, RDONLY | NOSUID);
        assert_eq!(options.propagation, [(libc::MS_PRIVATE, true)]);
    }

    #[test]
    fn an_idmap_may_bring_its_maps() {
        for (word, recursive, maps) in [
            ("idmap", false, None),
            ("ridmap", true, None),
            ("idmap=uids=0-1-2", false, Some("uids=0-1-2")),
        ] {
            let idmap = parsed(&[word]).idmap.expect("an idmap");
            assert_eq!((idmap.recursive, idmap.maps.as_deref()), (recursive, maps));
        }
    }

    #[test]
    fn plain_words_that_begin_with_r_are_not_mistaken() {
        let options = parsed(&["relatime", "ro", "rw", "remount", "rootcontext=x"]);
        assert!(options.deep.is_noop() && options.remount);
        assert_eq!(options.data, ["rootcontext=x"]);
    }
}
