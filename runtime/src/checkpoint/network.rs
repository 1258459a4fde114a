//! A network that is not the container's own.
//!
//! Seen from outside, CRIU asks such a network for its connections (conntrack), twice, though it will
//! restore none of it: the kernel goes through the table of the whole host, a third of the time for
//! which a small container stands still. Seen from inside, CRIU takes the network for its own and
//! leaves it alone; what it writes then is completed here, and says the same as from outside.

use std::fs;
use std::path::Path;

use prost::Message as _;
use xebec_proto::criu_images::{InventoryEntry, NamespaceIds, NetworkEntry, TreeEntry};

use super::messages::{Kind, encode, messages};
use crate::error::{Error, Result};

const INVENTORY: &str = "inventory.img";
const TREE: &str = "pstree.img";
/// A number of CRIU's own network that no network of a dump has: they count from 1.
const ELSEWHERE: u32 = i32::MAX as u32;

/// Has the images of a dump that was made from inside of the container's network say that it is not
/// CRIU's, and how it is called.
///
/// # Errors
/// A file is missing or damaged, or the disk is full.
pub(crate) fn name_network(images: &Path, key: &str) -> Result<()> {
    let number = number_of_network(images)?;
    let path = images.join(INVENTORY);
    let content = read(&path)?;
    let renumbered =
        renumber(&content).ok_or_else(|| damaged(&path, "not an inventory of images"))?;
    let entry = NetworkEntry {
        ext_key: Some(key.to_owned()),
    };
    let network = encode(Kind::Network, &[entry.encode_to_vec()]);
    write(&images.join(format!("netns-{number}.img")), &network)?;
    write(&path, &renumbered)
}

/// What the images call the network that init is in.
fn number_of_network(images: &Path) -> Result<u32> {
    let tree = images.join(TREE);
    let content = read(&tree)?;
    let init = messages(&content, Kind::Tree).and_then(|all| all.first().copied());
    let init = init.and_then(|init| TreeEntry::decode(init).ok());
    let init = init.ok_or_else(|| damaged(&tree, "not an image of processes"))?;
    let path = images.join(format!("ids-{}.img", init.pid));
    let content = read(&path)?;
    let ids = messages(&content, Kind::Namespaces).and_then(|all| all.first().copied());
    let ids = ids.and_then(|ids| NamespaceIds::decode(ids).ok());
    ids.and_then(|ids| ids.net_ns_id)
        .ok_or_else(|| damaged(&path, "no network"))
}

/// An inventory by which CRIU was in another network. A field that comes again takes the place of the
/// one before, and all that we know nothing of stays.
fn renumber(inventory: &[u8]) -> Option<Vec<u8>> {
    let all = messages(inventory, Kind::Inventory)?;
    let known = InventoryEntry::decode(*all.first()?).ok()?;
    // Whole, as CRIU wants each part to have what the whole must have.
    let ids = NamespaceIds {
        net_ns_id: Some(ELSEWHERE),
        ..known.root_ids?
    };
    let change = InventoryEntry {
        img_version: known.img_version,
        root_ids: Some(ids),
        lsmtype: None,
    };
    let changed = [all[0], &change.encode_to_vec()].concat();
    Some(encode(Kind::Inventory, &[changed]))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::file("read", path))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(Error::file("write", path))
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::Criu(format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(directory: &Path, name: &str, kind: Kind, message: &impl prost::Message) {
        let content = encode(kind, &[message.encode_to_vec()]);
        fs::write(directory.join(name), content).expect("written");
    }

    #[test]
    fn images_made_in_a_network_say_that_it_is_not_crius() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let images = directory.path();
        let ids = NamespaceIds {
            net_ns_id: Some(10),
            ipc_ns_id: Some(11),
            ..NamespaceIds::default()
        };
        let inventory = InventoryEntry {
            img_version: 1,
            root_ids: Some(ids),
            lsmtype: Some(2),
        };
        let init = TreeEntry {
            pid: 1,
            ..TreeEntry::default()
        };
        image(images, "inventory.img", Kind::Inventory, &inventory);
        image(images, "pstree.img", Kind::Tree, &init);
        let missing = name_network(images, "net").expect_err("no ids");
        assert!(missing.to_string().contains("ids-1.img"), "{missing}");
        image(images, "ids-1.img", Kind::Namespaces, &ids);
        name_network(images, "extRootNetNS").expect("named");

        let content = fs::read(images.join("inventory.img")).expect("read");
        let all = messages(&content, Kind::Inventory).expect("an inventory");
        let changed = InventoryEntry::decode(all[0]).expect("an entry");
        let own = changed.root_ids.expect("ids");
        assert_eq!((changed.img_version, changed.lsmtype), (1, Some(2)));
        assert_eq!((own.net_ns_id, own.ipc_ns_id), (Some(ELSEWHERE), Some(11)));
        let content = fs::read(images.join("netns-10.img")).expect("read");
        let all = messages(&content, Kind::Network).expect("an image of a network");
        let named = NetworkEntry::decode(all[0]).expect("an entry");
        assert_eq!(named.ext_key.as_deref(), Some("extRootNetNS"));
    }

    #[test]
    fn a_damaged_inventory_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let images = directory.path();
        let ids = NamespaceIds {
            net_ns_id: Some(10),
            ..NamespaceIds::default()
        };
        image(images, "pstree.img", Kind::Tree, &TreeEntry::default());
        image(images, "ids-0.img", Kind::Namespaces, &ids);
        fs::write(images.join("inventory.img"), b"no image").expect("written");
        let error = name_network(images, "net").expect_err("damaged");
        assert!(error.to_string().contains("inventory.img"), "{error}");
    }
}
