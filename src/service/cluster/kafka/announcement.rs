//! What is in the topic of owners.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Under which the number of partitions is kept.
const JOURNAL_KEY: &str = "journal";
const LOST_KEY: &str = "lost";

/// A partition of which Kafka has lost the end, or which has been made anew: sums had more. What comes into it
/// later, from `kafka_to` on, is not what came there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub partition: i32,
    /// Up to where there were sums.
    pub sums_to: u64,
    /// Where Kafka's partition ended then.
    pub kafka_to: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Kafka had only {} messages where {} had been counted: the topic was made anew, or has lost its end. What \
             came after that would be counted wrongly",
            self.kafka_to, self.sums_to
        )
    }
}

/// The key is the partition, in decimal digits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Announcement {
    pub(super) partition: i32,
    pub(super) url: String,
    pub(super) node: String,
    /// None where an ownership begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<u64>,
    pub(super) offset: u64,
}

/// What is in the topic.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Said {
    Owner(Announcement),
    /// Under [`JOURNAL_KEY`].
    Journal {
        partitions: i32,
    },
    /// Under [`LOST_KEY`] and the partition.
    Lost(Lost),
}

impl Said {
    /// Under which it is in the topic, where only the last of a key stays.
    pub(super) fn key(&self) -> String {
        match self {
            Said::Owner(Announcement { partition, .. }) => partition.to_string(),
            Said::Journal { .. } => JOURNAL_KEY.to_owned(),
            Said::Lost(Lost { partition, .. }) => format!("{LOST_KEY}/{partition}"),
        }
    }

    /// Which partition it is about.
    pub(super) fn partition(&self) -> Option<i32> {
        match self {
            Said::Owner(Announcement { partition, .. }) | Said::Lost(Lost { partition, .. }) => {
                Some(*partition)
            }
            Said::Journal { .. } => None,
        }
    }

    /// What is sealed, in this topic. Of two that differ, the texts do too: a URL has no line breaks, nor has a name.
    pub(super) fn text(&self, topic: &str) -> String {
        match self {
            Said::Owner(Announcement {
                partition,
                url,
                node,
                epoch,
                offset,
            }) => format!("{topic}\nowner\n{partition}\n{url}\n{node}\n{epoch:?}\n{offset}"),
            Said::Journal { partitions } => format!("{topic}\njournal\n{partitions}"),
            Said::Lost(Lost {
                partition,
                sums_to,
                kafka_to,
            }) => format!("{topic}\nlost\n{partition}\n{sums_to}\n{kafka_to}"),
        }
    }
}

/// As it is in the topic.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sealed {
    #[serde(flatten)]
    pub(super) said: Said,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_topic() {
        let json = |said, seal: Option<&str>| {
            let seal = seal.map(str::to_owned);
            serde_json::to_string(&Sealed { said, seal }).unwrap()
        };
        let read = |json: &str| serde_json::from_str::<Sealed>(json).unwrap();
        assert_eq!(
            json(
                Said::Owner(Announcement {
                    partition: 3,
                    url: "http://a".into(),
                    node: "a".into(),
                    epoch: None,
                    offset: 5,
                }),
                Some("s")
            ),
            r#"{"partition":3,"url":"http://a","node":"a","offset":5,"seal":"s"}"#
        );
        // A field that a later version adds does not hurt.
        let more =
            r#"{"partition":3,"url":"u","node":"a","epoch":9,"offset":5,"rack":"r","seal":"s"}"#;
        let Sealed { said, seal } = read(more);
        assert!(matches!(
            &said,
            Said::Owner(Announcement { epoch: Some(9), .. })
        ));
        assert_eq!(said.text("t"), "t\nowner\n3\nu\na\nSome(9)\n5");
        assert_eq!(seal.as_deref(), Some("s"));
        let twelve = json(Said::Journal { partitions: 12 }, None);
        assert_eq!(twelve, r#"{"partitions":12}"#);
        assert!(matches!(
            read(&twelve).said,
            Said::Journal { partitions: 12 }
        ));
        let lost = Lost {
            partition: 3,
            sums_to: 29,
            kafka_to: 16,
        };
        let json = json(Said::Lost(lost), None);
        assert_eq!(json, r#"{"partition":3,"sums_to":29,"kafka_to":16}"#);
        let Sealed { said, seal } = read(&json);
        assert!(matches!(said, Said::Lost(read) if read == lost) && seal.is_none());
    }
}
