//! Where a set's objects lie, as keys relative to the repository.

use crate::cluster::{ClusterName, DatabaseName, Lineage};

use super::{Codec, SetId};

/// What the names of encrypted objects end in.
const SEALED: &str = ".age";

/// How the objects of a set are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// After what they hold: everybody may read it.
    Telling,
    /// By number: an encrypted set does not tell its databases' names.
    Opaque,
}

impl Naming {
    /// How the objects of a set are called that is encrypted, or not.
    pub fn of_set(encrypted: bool) -> Self {
        if encrypted { Self::Opaque } else { Self::Telling }
    }

    /// The object with roles, tablespaces and settings.
    pub fn globals(self, codec: Codec) -> String {
        self.compressed("globals.sql", codec)
    }

    /// The object with the dump of a database, the `place`th of the set (from 0).
    pub fn database(self, database: &DatabaseName, place: usize, codec: Codec) -> String {
        let name = match self {
            Self::Telling => database.as_path_component(),
            Self::Opaque => format!("{:04}", place + 1),
        };
        self.compressed(&format!("db/{name}.dump"), codec)
    }

    /// The object with the volumes.
    pub fn volume(self, codec: Codec) -> String {
        self.compressed("volume.tar", codec)
    }

    /// The object with what changed in the volumes.
    pub fn changes(self, codec: Codec) -> String {
        self.compressed("volume.changes", codec)
    }

    /// The object with the block index.
    pub fn blocks(self, codec: Codec) -> String {
        self.compressed("volume.blocks", codec.that_packs())
    }

    fn compressed(self, name: &str, codec: Codec) -> String {
        self.document(&format!("{name}{}", codec.ending()))
    }

    /// An object whose plain name tells nothing of the content.
    pub fn document(self, name: &str) -> String {
        match self {
            Self::Telling => name.to_owned(),
            Self::Opaque => format!("{name}{SEALED}"),
        }
    }
}

/// True for the name of an encrypted object.
pub(super) fn is_sealed(name: &str) -> bool {
    name.ends_with(SEALED)
}

/// What an object would be called if it was not encrypted.
pub(super) fn plain_name(name: &str) -> &str {
    name.strip_suffix(SEALED).unwrap_or(name)
}

/// The place of one set: the folder that all its objects are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLocation {
    /// The cluster the set is of.
    pub cluster: ClusterName,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The set.
    pub id: SetId,
}

impl SetLocation {
    /// The set's folder, without a slash at the end.
    pub fn folder(&self) -> String {
        format!("{}/{}/sets/{}", self.cluster, self.lineage, self.id)
    }

    /// The key of the object called `name` inside the set.
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder())
    }

    /// The key whose presence makes the set a backup.
    pub fn commit_key(&self) -> String {
        self.key("COMMIT")
    }

    /// The key of the manifest.
    pub fn manifest_key(&self, naming: Naming) -> String {
        self.key(&naming.document("manifest.json"))
    }

    /// The key of the certificate of a drill that ended at a time.
    pub fn drill_key(&self, ended_at: jiff::Timestamp) -> String {
        let time = ended_at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m%dT%H%M%S%3fZ");
        format!("{}/{}/drills/{}/{time}.json", self.cluster, self.lineage, self.id)
    }

    /// The key of the pin that holds the set, where there is one.
    pub fn pin_key(&self) -> String {
        format!("{}/{}/pins/{}.json", self.cluster, self.lineage, self.id)
    }
}

/// The set that a key such as `chado/7412345678901234567-17/drills/<id>/<UTC>.json` certifies; nothing for every other key.
pub fn drill_key_owner(key: &str) -> Option<SetLocation> {
    let mut parts = key.split('/');
    let (cluster, lineage, drills, id, file) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if drills != "drills" || parts.next().is_some() || file.strip_suffix(".json").is_none() {
        return None;
    }
    Some(SetLocation { cluster: cluster.parse().ok()?, lineage: lineage.parse().ok()?, id: id.parse().ok()? })
}

/// The set that an object with this key belongs to, and the object's name in it; nothing for a key outside of sets.
pub fn set_object(key: &str) -> Option<(SetLocation, &str)> {
    let mut parts = key.splitn(5, '/');
    let (cluster, lineage, sets, id, name) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if sets != "sets" {
        return None;
    }
    let location = SetLocation { cluster: cluster.parse().ok()?, lineage: lineage.parse().ok()?, id: id.parse().ok()? };
    Some((location, name))
}

/// The set that a key such as `chado/7412345678901234567-17/pins/<id>.json` pins; nothing for every other key.
pub fn pin_key_owner(key: &str) -> Option<SetLocation> {
    let mut parts = key.split('/');
    let (cluster, lineage, pins, file) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if pins != "pins" || parts.next().is_some() {
        return None;
    }
    let id = file.strip_suffix(".json")?.parse().ok()?;
    Some(SetLocation { cluster: cluster.parse().ok()?, lineage: lineage.parse().ok()?, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_back_to_its_set() {
        let location = SetLocation {
            cluster: "chado".parse().expect("a name"),
            lineage: "7412345678901234567-9.4".parse().expect("a lineage"),
            id: "20261122T023000Z-dump-k3x9qa".parse().expect("an id"),
        };
        assert_eq!(set_object(&location.commit_key()), Some((location.clone(), "COMMIT")));
        assert_eq!(set_object(&location.key("db/a.dump.zst")), Some((location.clone(), "db/a.dump.zst")));
        assert_eq!(set_object(&location.folder()), None);
        assert_eq!(pin_key_owner(&location.pin_key()), Some(location.clone()));
        for other in [location.commit_key(), format!("{}/x", location.pin_key()), format!("{}~", location.pin_key())] {
            assert_eq!(pin_key_owner(&other), None, "{other}");
        }
        assert_eq!(set_object(&location.pin_key()), None);
        let certificate = location.drill_key("2026-11-22T05:03:00.25Z".parse().expect("a time"));
        assert!(
            certificate.ends_with("/drills/20261122T023000Z-dump-k3x9qa/20261122T050300250Z.json"),
            "{certificate}"
        );
        assert_eq!(drill_key_owner(&certificate), Some(location.clone()));
        assert_eq!((set_object(&certificate), pin_key_owner(&certificate)), (None, None));
    }

    #[test]
    fn odd_database_names_stay_inside_the_set() {
        let name =
            |text: &str| Naming::Telling.database(&DatabaseName::new(text).expect("a name"), 0, Codec::default());
        assert_eq!(name("we ird"), "db/we%20ird.dump.zst");
        assert_eq!(name("../../etc/passwd"), "db/%2E.%2F..%2Fetc%2Fpasswd.dump.zst");
        assert_eq!(name("Ü"), "db/%C3%9C.dump.zst");
    }

    #[test]
    fn encrypted_sets_name_nothing() {
        let database = DatabaseName::new("payroll").expect("a name");
        let (zstd, gzip) = (Codec::default(), "gzip:6".parse().expect("a codec"));
        assert_eq!(Naming::Opaque.database(&database, 0, zstd), "db/0001.dump.zst.age");
        assert_eq!(Naming::Opaque.database(&database, 12_344, gzip), "db/12345.dump.gz.age");
        assert_eq!(Naming::Opaque.globals(zstd), "globals.sql.zst.age");
        assert!(is_sealed(&Naming::Opaque.globals(gzip)) && !is_sealed(&Naming::Telling.globals(gzip)));
        // A database can be called anything, but not so that its object looks sealed.
        let odd = DatabaseName::new("x.age").expect("a name");
        assert!(!is_sealed(&Naming::Telling.database(&odd, 0, zstd)));
    }
}
