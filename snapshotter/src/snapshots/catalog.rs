//! The snapshot database: every change is one durable transaction.
//!
//! Three tables: records by name, children by parent (so that a parent is never removed under
//! them), and the next directory number. A record is a small JSON document: there are hundreds,
//! and a person can read them when something is wrong.

use std::collections::HashSet;
use std::path::Path;

use redb::{ReadOnlyTable, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use super::database::Reopening;
use super::filter::Filters;
use super::record::{Kind, Labels, LazyLayer, Record, SnapshotId, Timestamp, Usage};
use crate::error::{Error, Result};

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
/// (parent's name, child's directory number) → nothing.
const CHILDREN: TableDefinition<(&str, u64), ()> = TableDefinition::new("children");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next-id";
const LAYOUT: &str = "layout";
/// Changes when an older daemon could not read what this one writes.
const LAYOUT_VERSION: u64 = 1;

/// A snapshot with its name.
pub type Named = (String, Record);

/// All snapshots under one root.
#[derive(Debug)]
pub struct Catalog {
    database: Reopening,
}

impl Catalog {
    /// Opens the database, or creates it; a crash of an earlier daemon needs no repair step.
    pub fn open(path: &Path) -> Result<Self> {
        let catalog = Self {
            database: Reopening::open(path)?,
        };
        catalog.write(|tables| {
            let found = tables.counters.get(LAYOUT)?.map(|value| value.value());
            match found {
                None => tables.counters.insert(LAYOUT, LAYOUT_VERSION).map(drop)?,
                Some(LAYOUT_VERSION) => {}
                Some(other) => {
                    return Err(Error::FailedPrecondition(format!(
                        "{} has layout {other}, this daemon knows {LAYOUT_VERSION}",
                        path.display()
                    )));
                }
            }
            Ok(())
        })?;
        Ok(catalog)
    }

    /// The record of `name`.
    pub fn get(&self, name: &str) -> Result<Record> {
        self.look(|records| read(records, name))
    }

    /// The record of `name` and those of its parents, topmost first.
    pub fn chain(&self, name: &str) -> Result<(Record, Vec<Record>)> {
        self.look(|records| {
            let record = read(records, name)?;
            let parents = ancestors(records, record.parent.as_deref())?;
            Ok((record, parents))
        })
    }

    /// The records from the committed snapshot `parent` down, topmost first.
    pub fn parents(&self, parent: Option<&str>) -> Result<Vec<Record>> {
        let parents = self.look(|records| ancestors(records, parent))?;
        if let (Some(name), Some(top)) = (parent, parents.first()) {
            top.check_parent(name)?;
        }
        Ok(parents)
    }

    /// Every snapshot that `filters` ask for, by name.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Named>> {
        self.select(|name, record| filters.matches(name, record))
    }

    /// Every snapshot for which `wanted` holds, by name.
    pub fn select(&self, wanted: impl Fn(&str, &Record) -> bool) -> Result<Vec<Named>> {
        self.look(|records| {
            let mut found = Vec::new();
            for entry in records.iter()? {
                let (name, bytes) = entry?;
                let record = decode(name.value(), bytes.value())?;
                if wanted(name.value(), &record) {
                    found.push((name.value().to_owned(), record));
                }
            }
            Ok(found)
        })
    }

    /// Adds an active snapshot or a view; `make` creates its directory before the record is durable.
    pub fn create(
        &self,
        kind: Kind,
        name: &str,
        parent: Option<&str>,
        labels: Labels,
        make: impl FnOnce(&Record) -> Result<()>,
    ) -> Result<Record> {
        self.write(|tables| {
            let id = tables.next_id()?;
            let record = Record::new(id, kind, parent, labels, Timestamp::now());
            tables.add(name, &record)?;
            make(&record)?;
            Ok(record)
        })
    }

    /// Adds a committed snapshot whose files come from the lazy layer `layer`.
    pub fn create_lazy(
        &self,
        name: &str,
        parent: Option<&str>,
        labels: Labels,
        layer: LazyLayer,
    ) -> Result<Record> {
        self.write(|tables| {
            let id = tables.next_id()?;
            let record = Record::lazy(id, parent, labels, Timestamp::now(), layer);
            tables.add(name, &record)?;
            Ok(record)
        })
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    pub fn commit(&self, key: &str, name: &str, labels: Labels, usage: Usage) -> Result<()> {
        self.write(|tables| {
            let record = read(&tables.records, key)?;
            let committed = record.commit(key, labels, usage, Timestamp::now())?;
            if key != name {
                tables.refuse_existing(name)?;
                tables.records.remove(key)?;
            }
            tables.put(name, &committed)
        })
    }

    /// Replaces the labels that `mask` names.
    pub fn update(&self, name: &str, labels: &Labels, mask: &[String]) -> Result<Record> {
        self.write(|tables| {
            let record = read(&tables.records, name)?.relabel(labels, mask, Timestamp::now())?;
            tables.put(name, &record)?;
            Ok(record)
        })
    }

    /// Removes a snapshot that has no children.
    pub fn remove(&self, name: &str) -> Result<Record> {
        self.write(|tables| {
            let record = read(&tables.records, name)?;
            if tables.has_children(name)? {
                return Err(Error::FailedPrecondition(format!(
                    "snapshot {name:?} has children"
                )));
            }
            tables.records.remove(name)?;
            if let Some(parent) = &record.parent {
                tables.children.remove((parent.as_str(), record.id.0))?;
            }
            Ok(record)
        })
    }

    /// Runs `look` on the directory numbers in use while nothing can be created or removed.
    pub fn with_ids<T>(&self, look: impl FnOnce(&HashSet<SnapshotId>) -> Result<T>) -> Result<T> {
        self.database.exclusive(|transaction| {
            let mut ids = HashSet::new();
            for entry in transaction.open_table(RECORDS)?.iter()? {
                let (name, bytes) = entry?;
                ids.insert(decode(name.value(), bytes.value())?.id);
            }
            look(&ids)
        })
    }

    fn look<T>(
        &self,
        look: impl FnOnce(&ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T>,
    ) -> Result<T> {
        self.database
            .read(|transaction| look(&transaction.open_table(RECORDS)?))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Tables<'_>) -> Result<T>) -> Result<T> {
        self.database
            .write(|transaction| change(&mut Tables::open(transaction)?))
    }
}

struct Tables<'t> {
    records: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (&'static str, u64), ()>,
    counters: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            children: transaction.open_table(CHILDREN)?,
            counters: transaction.open_table(COUNTERS)?,
        })
    }

    fn next_id(&mut self) -> Result<SnapshotId> {
        let id = self.counters.get(NEXT_ID)?.map_or(1, |next| next.value());
        self.counters.insert(NEXT_ID, id + 1)?;
        Ok(SnapshotId(id))
    }

    fn add(&mut self, name: &str, record: &Record) -> Result<()> {
        self.refuse_existing(name)?;
        if let Some(parent) = &record.parent {
            read(&self.records, parent)?.check_parent(parent)?;
            self.children.insert((parent.as_str(), record.id.0), ())?;
        }
        self.put(name, record)
    }

    fn put(&mut self, name: &str, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record)
            .map_err(|error| Error::Internal(format!("encode snapshot {name:?}: {error}")))?;
        self.records.insert(name, bytes.as_slice())?;
        Ok(())
    }

    fn refuse_existing(&self, name: &str) -> Result<()> {
        match self.records.get(name)? {
            Some(_) => Err(Error::AlreadyExists(format!("snapshot {name:?}"))),
            None => Ok(()),
        }
    }

    fn has_children(&self, name: &str) -> Result<bool> {
        Ok(self
            .children
            .range((name, 0)..=(name, u64::MAX))?
            .next()
            .transpose()?
            .is_some())
    }
}

fn read(records: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Record> {
    match records.get(name)? {
        Some(bytes) => decode(name, bytes.value()),
        None => Err(Error::NotFound(format!("snapshot {name:?}"))),
    }
}

fn ancestors(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: Option<&str>,
) -> Result<Vec<Record>> {
    let mut chain: Vec<Record> = Vec::new();
    while let Some(name) = chain
        .last()
        .map_or(parent, |record| record.parent.as_deref())
    {
        let record = read(records, name)?;
        chain.push(record);
    }
    Ok(chain)
}

fn decode(name: &str, bytes: &[u8]) -> Result<Record> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Internal(format!("record of snapshot {name:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::mount::LayerId;
    use tonic::Code;

    fn catalog() -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("snapshots.redb")).unwrap();
        (dir, catalog)
    }

    fn add(catalog: &Catalog, kind: Kind, name: &str, parent: Option<&str>) -> Result<Record> {
        catalog.create(kind, name, parent, Labels::new(), |_| Ok(()))
    }

    fn committed(catalog: &Catalog, name: &str, parent: Option<&str>) {
        add(catalog, Kind::Active, "tmp", parent).unwrap();
        catalog
            .commit(
                "tmp",
                name,
                Labels::new(),
                Usage {
                    inodes: 1,
                    bytes: 2,
                },
            )
            .unwrap();
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
        result.unwrap_err().code()
    }

    #[test]
    fn a_snapshot_keeps_its_directory_when_it_is_committed() {
        let (_dir, catalog) = catalog();
        let active = add(&catalog, Kind::Active, "a", None).unwrap();
        catalog
            .commit(
                "a",
                "c",
                Labels::new(),
                Usage {
                    inodes: 1,
                    bytes: 2,
                },
            )
            .unwrap();
        let committed = catalog.get("c").unwrap();
        assert_eq!((committed.id, committed.kind), (active.id, Kind::Committed));
        assert_eq!(
            committed.usage,
            Usage {
                inodes: 1,
                bytes: 2
            }
        );
        assert_eq!(code(catalog.get("a")), Code::NotFound);
    }

    #[test]
    fn names_are_unique_and_a_refused_change_leaves_nothing() {
        let (_dir, catalog) = catalog();
        committed(&catalog, "c", None);
        add(&catalog, Kind::Active, "a", None).unwrap();
        let before = catalog.select(|_, _| true).unwrap();
        assert_eq!(
            code(add(&catalog, Kind::View, "a", Some("c"))),
            Code::AlreadyExists
        );
        assert_eq!(
            code(add(&catalog, Kind::View, "c", None)),
            Code::AlreadyExists
        );
        assert_eq!(
            code(catalog.commit("a", "c", Labels::new(), Usage::default())),
            Code::AlreadyExists
        );
        assert_eq!(catalog.select(|_, _| true).unwrap(), before);
        catalog.remove("c").unwrap();
    }

    #[test]
    fn a_parent_must_exist_and_be_committed() {
        let (_dir, catalog) = catalog();
        add(&catalog, Kind::Active, "a", None).unwrap();
        for kind in [Kind::Active, Kind::View] {
            assert_eq!(code(add(&catalog, kind, "x", Some("none"))), Code::NotFound);
            assert_eq!(
                code(add(&catalog, kind, "x", Some("a"))),
                Code::InvalidArgument
            );
        }
        assert_eq!(code(catalog.parents(Some("none"))), Code::NotFound);
        assert_eq!(code(catalog.parents(Some("a"))), Code::InvalidArgument);
        assert!(catalog.parents(None).unwrap().is_empty());
    }

    #[test]
    fn a_chain_lists_its_parents_from_the_top() {
        let (_dir, catalog) = catalog();
        committed(&catalog, "one", None);
        committed(&catalog, "two", Some("one"));
        let view = add(&catalog, Kind::View, "v", Some("two")).unwrap();
        let (record, parents) = catalog.chain("v").unwrap();
        assert_eq!(record, view);
        let ids: Vec<_> = parents.iter().map(|parent| parent.id).collect();
        assert_eq!(
            ids,
            [
                catalog.get("two").unwrap().id,
                catalog.get("one").unwrap().id
            ]
        );
    }

    #[test]
    fn a_snapshot_with_children_stays_until_they_are_gone() {
        let (_dir, catalog) = catalog();
        committed(&catalog, "base", None);
        // The child's link must survive its own renaming by commit.
        committed(&catalog, "child", Some("base"));
        add(&catalog, Kind::View, "v", Some("base")).unwrap();
        for child in ["child", "v"] {
            assert_eq!(code(catalog.remove("base")), Code::FailedPrecondition);
            catalog.remove(child).unwrap();
        }
        catalog.remove("base").unwrap();
        assert_eq!(code(catalog.remove("base")), Code::NotFound);
    }

    #[test]
    fn a_name_that_only_starts_like_a_parent_has_no_children() {
        let (_dir, catalog) = catalog();
        committed(&catalog, "base", None);
        committed(&catalog, "base2", None);
        add(&catalog, Kind::View, "v", Some("base2")).unwrap();
        catalog.remove("base").unwrap();
    }

    #[test]
    fn a_directory_number_is_never_used_again() {
        let (_dir, catalog) = catalog();
        let first = add(&catalog, Kind::Active, "a", None).unwrap().id;
        catalog.remove("a").unwrap();
        assert!(add(&catalog, Kind::Active, "a", None).unwrap().id > first);
    }

    #[test]
    fn no_record_is_written_when_the_directory_cannot_be_made() {
        let (_dir, catalog) = catalog();
        let refuse = |_: &Record| Err(Error::Internal("no".into()));
        let error = catalog
            .create(Kind::Active, "a", None, Labels::new(), refuse)
            .unwrap_err();
        assert!(matches!(error, Error::Internal(_)));
        assert_eq!(code(catalog.get("a")), Code::NotFound);
    }

    #[test]
    fn everything_is_there_after_the_database_was_reopened() {
        let (dir, catalog) = catalog();
        committed(&catalog, "base", None);
        catalog
            .create_lazy(
                "lazy",
                Some("base"),
                Labels::new(),
                LayerId::from(Digest::of(b"layer")).into(),
            )
            .unwrap();
        let before = catalog.select(|_, _| true).unwrap();
        drop(catalog);
        let catalog = Catalog::open(&dir.path().join("snapshots.redb")).unwrap();
        assert_eq!(catalog.select(|_, _| true).unwrap(), before);
        assert_eq!(code(catalog.remove("base")), Code::FailedPrecondition);
        let ids = catalog.with_ids(|ids| Ok(ids.clone())).unwrap();
        assert_eq!(ids, before.iter().map(|(_, record)| record.id).collect());
    }

    #[test]
    fn a_layout_of_another_version_is_refused() {
        let (dir, catalog) = catalog();
        catalog
            .write(|tables| Ok(tables.counters.insert(LAYOUT, 99).map(drop)?))
            .unwrap();
        drop(catalog);
        let error = Catalog::open(&dir.path().join("snapshots.redb")).unwrap_err();
        assert!(error.to_string().contains("layout 99"), "{error}");
    }
}
