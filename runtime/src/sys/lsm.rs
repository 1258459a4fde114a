//! What security modules say of this process (`lsm_get_self_attr`, kernel 6.8).

use rustix::io::Errno;

/// The same number for all architectures.
const SYS_LSM_GET_SELF_ATTR: libc::c_long = 459;
/// `LSM_ATTR_CURRENT` and `LSM_ID_APPARMOR` of `linux/lsm.h`.
const ATTR_CURRENT: libc::c_uint = 100;
const ID_APPARMOR: u64 = 104;

/// Room for the contexts of several modules; more than that is taken for confinement.
const ROOM: usize = 512;
/// Members of `struct lsm_ctx` before the context: id, flags, length of the whole, of the context.
const HEAD: usize = 4;

/// Whether a profile of AppArmor applies to this process; yes, if that cannot be told.
pub(crate) fn is_confined_by_apparmor() -> bool {
    let mut buffer = [0_u64; ROOM];
    let mut size = size_of_val(&buffer) as u32;
    // SAFETY: the buffer is as long as `size` says, and aligned for struct lsm_ctx.
    let count = super::check(unsafe {
        libc::syscall(
            SYS_LSM_GET_SELF_ATTR,
            ATTR_CURRENT,
            buffer.as_mut_ptr(),
            &raw mut size,
            0,
        )
    });
    match count {
        Ok(_) => confines(&buffer[..(size as usize).div_ceil(8).min(ROOM)]),
        // No module has a context for it.
        Err(errno) => errno != Errno::OPNOTSUPP,
    }
}

/// Reads the list of contexts. Lengths are multiples of eight bytes.
fn confines(mut rest: &[u64]) -> bool {
    while let Some((&[id, _, whole, length], context)) = rest.split_first_chunk::<HEAD>() {
        let text = context.iter().flat_map(|word| word.to_ne_bytes());
        let text = text.take(length as usize).take_while(|&byte| byte != 0);
        if id == ID_APPARMOR && !text.eq(*b"unconfined") {
            return true;
        }
        let step = usize::try_from(whole / 8).unwrap_or(usize::MAX).max(HEAD);
        rest = rest.get(step..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(id: u64, text: &[u8]) -> Vec<u64> {
        let words: Vec<u64> = text
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        let whole = (HEAD + words.len()) as u64 * 8;
        [vec![id, 0, whole, text.len() as u64], words].concat()
    }

    #[test]
    fn only_a_profile_of_apparmor_confines() {
        let selinux = context(101, b"system_u:system_r:container_runtime_t:s0\0");
        let free = context(ID_APPARMOR, b"unconfined\0");
        let lxc = context(ID_APPARMOR, b"lxc-container-default (enforce)\0");
        let almost = context(ID_APPARMOR, b"unconfined-not");
        assert!(!confines(&[]));
        assert!(!confines(&selinux));
        assert!(!confines(&[selinux.clone(), free.clone()].concat()));
        assert!(confines(&[selinux, lxc].concat()));
        assert!(confines(&[free, almost].concat()));
    }

    #[test]
    fn this_process_can_be_asked() {
        let profile = std::fs::read_to_string("/proc/self/attr/apparmor/current");
        let confined = profile.is_ok_and(|profile| profile.trim_end() != "unconfined");
        assert_eq!(is_confined_by_apparmor(), confined);
    }
}
