//! How a typed value becomes the bytes of a record: its schema version, then postcard.

use serde::{Serialize, de::DeserializeOwned};

use crate::engine::Table;

/// A value that has a table of its own.
///
/// ```
/// # use serde::{Serialize, Deserialize};
/// # use store::{Stored, Table, record};
/// mod v1 {
///     #[derive(serde::Serialize, serde::Deserialize)]
///     pub struct Note { pub text: String }
/// }
/// #[derive(Serialize, Deserialize)]
/// struct Note { text: String, pinned: bool }
/// impl Stored for Note {
///     const TABLE: Table = Table("note");
///     const SCHEMA: u8 = 2;
///     fn migrate(schema: u8, bytes: &[u8]) -> Option<Note> {
///         match schema {
///             1 => record::postcard::<v1::Note>(bytes).map(|old| Note { text: old.text, pinned: false }),
///             _ => None,
///         }
///     }
/// }
/// ```
pub trait Stored: Serialize + DeserializeOwned + Send + 'static {
    /// Where values of this type are kept.
    const TABLE: Table;
    /// The number of today's layout; it grows with each change of the type's fields. Starts at 1.
    const SCHEMA: u8;

    /// Reads what an older version of the server wrote; `None` if the bytes are not of that schema.
    ///
    /// Called with schemas below [`Stored::SCHEMA`] only. Old records are rewritten when they are next put.
    fn migrate(schema: u8, bytes: &[u8]) -> Option<Self> {
        let _ = (schema, bytes);
        None
    }

    /// The record of this value in an older layout that says all of it ([`in_schema`]), so that nodes of the version before
    /// can read it; `None`: in today's.
    fn older(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Why bytes are not a value of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("record is empty")]
    Empty,
    /// Written by a newer server; left alone.
    #[error("schema {found} is newer than {known}, the newest that is known here")]
    Newer { found: u8, known: u8 },
    #[error("no value of schema {schema}")]
    Malformed { schema: u8 },
}

/// The bytes of a value: schema version, then postcard.
pub fn encode<T: Stored>(value: &T) -> Vec<u8> {
    value.older().unwrap_or_else(|| in_schema(T::SCHEMA, value, 0))
}

/// As [`encode`], of something that is written as a `T` is, in about so many bytes.
pub fn encode_as<T: Stored>(value: &impl Serialize, size: usize) -> Vec<u8> {
    in_schema(T::SCHEMA, value, size)
}

/// The bytes of a value in the layout of that number, about so many.
pub fn in_schema(schema: u8, value: &impl Serialize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + size);
    bytes.push(schema);
    // Postcard fails on sequences of unknown length and on writers that fail; a Vec does not fail, and a
    // type that serializes such a sequence fails in its first test.
    postcard::serialize_with_flavor(value, Memory(bytes)).expect("a stored type serializes into memory")
}

/// Appends to a vector; postcard's own ways do so byte by byte, or begin an empty one.
struct Memory(Vec<u8>);

impl postcard::ser_flavors::Flavor for Memory {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// The value of bytes that this or an older version of the server wrote.
///
/// # Errors
/// [`Unreadable`] says what is wrong; nothing is guessed.
pub fn decode<T: Stored>(bytes: &[u8]) -> Result<T, Unreadable> {
    let (&schema, rest) = bytes.split_first().ok_or(Unreadable::Empty)?;
    let value = match schema.cmp(&T::SCHEMA) {
        std::cmp::Ordering::Equal => postcard::<T>(rest),
        std::cmp::Ordering::Less => T::migrate(schema, rest),
        std::cmp::Ordering::Greater => return Err(Unreadable::Newer { found: schema, known: T::SCHEMA }),
    };
    value.ok_or(Unreadable::Malformed { schema })
}

/// Reads all of `bytes` as postcard; for migrations.
pub fn postcard<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    mod v1 {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct Note {
            pub text: String,
        }
    }
    mod v2 {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct Note {
            pub text: String,
            pub pinned: bool,
        }
        impl From<super::v1::Note> for Note {
            fn from(old: super::v1::Note) -> Note {
                Note { text: old.text, pinned: false }
            }
        }
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        rank: u32,
    }
    impl From<v2::Note> for Note {
        fn from(old: v2::Note) -> Note {
            Note { text: old.text, rank: if old.pinned { 1 } else { 0 } }
        }
    }
    impl Stored for Note {
        const TABLE: Table = Table("note");
        const SCHEMA: u8 = 3;
        fn migrate(schema: u8, bytes: &[u8]) -> Option<Note> {
            match schema {
                1 => postcard::<v1::Note>(bytes).map(v2::Note::from).map(Note::from),
                2 => postcard::<v2::Note>(bytes).map(Note::from),
                _ => None,
            }
        }
    }

    #[test]
    fn a_value_comes_back() {
        let note = Note { text: "x".into(), rank: 300 };
        assert_eq!(decode::<Note>(&encode(&note)), Ok(note));
    }

    #[test]
    fn the_bytes_of_a_schema_stay_as_they_are() {
        assert_eq!(encode(&Note { text: "hi".into(), rank: 300 }), [3, 2, b'h', b'i', 0xac, 0x02]);
    }

    #[test]
    fn old_bytes_are_migrated_along_the_chain() {
        assert_eq!(decode::<Note>(&[1, 2, b'h', b'i']), Ok(Note { text: "hi".into(), rank: 0 }));
        assert_eq!(decode::<Note>(&[2, 2, b'h', b'i', 1]), Ok(Note { text: "hi".into(), rank: 1 }));
    }

    #[test]
    fn bytes_of_no_or_a_newer_schema_are_refused() {
        assert_eq!(decode::<Note>(&[]), Err(Unreadable::Empty));
        assert_eq!(decode::<Note>(&[0, 1]), Err(Unreadable::Malformed { schema: 0 }));
        assert_eq!(decode::<Note>(&[4, 1]), Err(Unreadable::Newer { found: 4, known: 3 }));
        assert_eq!(decode::<Note>(&[3, 9, b'h']), Err(Unreadable::Malformed { schema: 3 }));
        // A tail that nobody reads is a sign of another layout.
        assert_eq!(decode::<Note>(&[3, 2, b'h', b'i', 0, 0]), Err(Unreadable::Malformed { schema: 3 }));
    }
}
