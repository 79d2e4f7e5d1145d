//! Recognizes misspelled and alternative names of fields.

use crate::Field;

/// Minimum similarity, from 0 to 1, of a name and its misspelling.
const LIKENESS_MIN: f64 = 0.75;

/// Common names of a field in lower case, without separators.
fn synonyms(field: Field) -> &'static [&'static str] {
    match field {
        Field::SrcApp => &[
            "srcapp",
            "sourceapp",
            "src",
            "source",
            "srcname",
            "sourcename",
            "srcservice",
            "sourceservice",
            "srcworkload",
            "sourceworkload",
            "srcapplication",
            "sourceapplication",
            "client",
            "from",
        ],
        Field::DestApp => &[
            "destapp",
            "dstapp",
            "destinationapp",
            "dest",
            "dst",
            "destination",
            "destname",
            "dstname",
            "destinationname",
            "destservice",
            "dstservice",
            "destinationservice",
            "destworkload",
            "dstworkload",
            "destinationworkload",
            "destapplication",
            "dstapplication",
            "destinationapplication",
            "target",
            "server",
            "to",
        ],
        Field::VpcId => &[
            "vpcid",
            "vpc",
            "vpcname",
            "vnet",
            "vnetid",
            "networkid",
            "network",
        ],
        Field::BytesTx => &[
            "bytestx",
            "txbytes",
            "tx",
            "bytessent",
            "sentbytes",
            "bytesout",
            "outbytes",
            "sent",
            "bytes",
            "octets",
            "inoctets",
            "bytessrctodst",
        ],
        Field::BytesRx => &[
            "bytesrx",
            "rxbytes",
            "rx",
            "bytesreceived",
            "receivedbytes",
            "bytesin",
            "inbytes",
            "received",
            "bytesdsttosrc",
        ],
        Field::Hour => &[
            "hour",
            "hours",
            "time",
            "timestamp",
            "ts",
            "start",
            "date",
            "epoch",
        ],
    }
}

impl Field {
    /// The one of `names` that probably means this field.
    pub fn misspelled_in<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let likeness = |name: &str| {
            let plain: String = name
                .chars()
                .filter(|c| c.is_alphanumeric())
                .flat_map(char::to_lowercase)
                .collect();
            if Field::from_name(name.as_bytes()).is_some() {
                return 0.0; // it is another field
            }
            let synonyms = synonyms(self);
            match synonyms.iter().position(|synonym| *synonym == plain) {
                // More specific synonyms come first.
                Some(at) => 2.0 - at as f64 / 100.0,
                None => strsim::normalized_damerau_levenshtein(synonyms[0], &plain),
            }
        };
        let names = names.into_iter().map(|name| (likeness(name), name));
        let likely = names.filter(|(likeness, _)| *likeness >= LIKENESS_MIN);
        likely
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_a_field() {
        for (field, names, expected) in [
            (Field::DestApp, &["src_app", "dst_app"][..], Some("dst_app")),
            (Field::DestApp, &["destApp"], Some("destApp")),
            (Field::DestApp, &["Dest-App"], Some("Dest-App")),
            (Field::DestApp, &["dest_ap"], Some("dest_ap")),
            (Field::DestApp, &["dset_app"], Some("dset_app")),
            (
                Field::DestApp,
                &["server", "destination"],
                Some("destination"),
            ),
            (Field::SrcApp, &["dest_app", "source"], Some("source")),
            (Field::SrcApp, &["dest_app", "dst_app"], None),
            (Field::BytesTx, &["bytes_rx", "tx_bytes"], Some("tx_bytes")),
            (Field::BytesTx, &["bytes_rx"], None),
            (Field::BytesRx, &["Bytes RX "], Some("Bytes RX ")),
            (Field::VpcId, &["vpc-id"], Some("vpc-id")),
            (Field::Hour, &["timestamp", "Hour"], Some("Hour")),
            (Field::Hour, &["rtt", "", "\u{1f600}"], None),
        ] {
            let found = field.misspelled_in(names.iter().copied());
            assert_eq!(found, expected, "{field:?} {names:?}");
        }
    }
}
