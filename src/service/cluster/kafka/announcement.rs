//! The messages in the topic of owners.

use std::fmt;

use serde::{Deserialize, Serialize};

use flow::{Offset, Partition, PartitionCount};

/// Key of the number of partitions.
const JOURNAL_KEY: &str = "journal";
const LOST_KEY: &str = "lost";

/// Kafka has lost the end of a partition, or the topic was created anew, while the sums included more. Messages from
/// `kafka_to` on are not those that were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    pub partition: Partition,
    /// The position of the sums.
    pub sums_to: Offset,
    /// The end of Kafka's partition when this was found.
    pub kafka_to: Offset,
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Kafka had only {} messages of the partition, and {} had been counted: the topic was created anew, or has \
             lost its end. Later messages are not those that were counted",
            self.kafka_to, self.sums_to
        )
    }
}

/// A node owns a partition. The key is the partition, in decimal digits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ownership {
    pub(super) partition: Partition,
    pub(super) url: String,
    pub(super) node: String,
    /// `None` at the start of an ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<Offset>,
    /// The position of the sums.
    pub(super) offset: Offset,
}

/// A message in the topic.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Announcement {
    Owner(Ownership),
    /// Under [`JOURNAL_KEY`].
    Journal {
        partitions: PartitionCount,
    },
    /// Under [`LOST_KEY`] and the partition.
    Truncation(Truncation),
}

impl Announcement {
    /// Its key. Compaction keeps the last message of a key.
    pub(super) fn key(&self) -> String {
        match self {
            Announcement::Owner(Ownership { partition, .. }) => partition.to_string(),
            Announcement::Journal { .. } => JOURNAL_KEY.to_owned(),
            Announcement::Truncation(Truncation { partition, .. }) => {
                format!("{LOST_KEY}/{partition}")
            }
        }
    }

    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<Partition> {
        match self {
            Announcement::Owner(Ownership { partition, .. })
            | Announcement::Truncation(Truncation { partition, .. }) => Some(*partition),
            Announcement::Journal { .. } => None,
        }
    }

    /// The text that is signed, in this topic. It is unambiguous, since neither URLs nor names have line breaks.
    pub(super) fn signed_text(&self, topic: &str) -> String {
        match self {
            Announcement::Owner(Ownership {
                partition,
                url,
                node,
                epoch,
                offset,
            }) => {
                let epoch = epoch.map(Offset::get);
                format!("{topic}\nowner\n{partition}\n{url}\n{node}\n{epoch:?}\n{offset}")
            }
            Announcement::Journal { partitions } => format!("{topic}\njournal\n{partitions}"),
            Announcement::Truncation(Truncation {
                partition,
                sums_to,
                kafka_to,
            }) => format!("{topic}\nlost\n{partition}\n{sums_to}\n{kafka_to}"),
        }
    }
}

/// An announcement with its signature.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Signed {
    #[serde(flatten)]
    pub(super) announcement: Announcement,
    #[serde(default, rename = "seal", skip_serializing_if = "Option::is_none")]
    pub(super) signature: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_messages_are_pinned() {
        let json = |announcement, signature: Option<&str>| {
            let signature = signature.map(str::to_owned);
            serde_json::to_string(&Signed {
                announcement,
                signature,
            })
            .unwrap()
        };
        let read = |json: &str| serde_json::from_str::<Signed>(json).unwrap();
        let three = Partition::try_from(3).unwrap();
        let offset = |number: u64| Offset::try_from(number).unwrap();
        assert_eq!(
            json(
                Announcement::Owner(Ownership {
                    partition: three,
                    url: "http://a".into(),
                    node: "a".into(),
                    epoch: None,
                    offset: offset(5),
                }),
                Some("s")
            ),
            r#"{"partition":3,"url":"http://a","node":"a","offset":5,"seal":"s"}"#
        );
        // A field of a later version is ignored.
        let more =
            r#"{"partition":3,"url":"u","node":"a","epoch":9,"offset":5,"rack":"r","seal":"s"}"#;
        let Signed {
            announcement,
            signature,
        } = read(more);
        assert!(matches!(
            &announcement,
            Announcement::Owner(Ownership { epoch: Some(epoch), .. }) if epoch.get() == 9
        ));
        let text = announcement.signed_text("t");
        assert_eq!(text, "t\nowner\n3\nu\na\nSome(9)\n5");
        assert_eq!(signature.as_deref(), Some("s"));
        let partitions = PartitionCount::try_from(12).unwrap();
        let twelve = json(Announcement::Journal { partitions }, None);
        assert_eq!(twelve, r#"{"partitions":12}"#);
        assert!(matches!(
            read(&twelve).announcement,
            Announcement::Journal { partitions: p } if p == partitions
        ));
        let truncation = Truncation {
            partition: three,
            sums_to: offset(29),
            kafka_to: offset(16),
        };
        let json = json(Announcement::Truncation(truncation), None);
        assert_eq!(json, r#"{"partition":3,"sums_to":29,"kafka_to":16}"#);
        let Signed {
            announcement,
            signature,
        } = read(&json);
        assert!(matches!(announcement, Announcement::Truncation(t) if t == truncation));
        assert!(signature.is_none());
        // Invalid numbers are errors.
        for wrong in [
            r#"{"partition":-1,"url":"u","node":"a","offset":5}"#,
            r#"{"partition":3,"url":"u","node":"a","offset":9223372036854775808}"#,
            r#"{"partition":3,"url":"u","node":"a","epoch":9223372036854775808,"offset":5}"#,
            r#"{"partitions":0}"#,
        ] {
            assert!(serde_json::from_str::<Signed>(wrong).is_err(), "{wrong}");
        }
    }
}
