//! Verifies spans: each row is the sum of the rows of the span's hours.

use rocksdb::{ColumnFamily, DB};

use super::{KeyLayout, Span, SpanMerge, Summed, Tier, cover};
use crate::store::codec::FlowKey;
use crate::store::error::StoreError;
use crate::store::families::iterate;

/// Compares the rows of a summed span with those of its hours, or of its shorter spans. Returns the first difference.
pub(in crate::store) fn compare_span(
    db: &DB,
    settled: &ColumnFamily,
    span: Span,
    summed: &Summed,
) -> Result<Option<String>, StoreError> {
    let shorter = Tier::ALL.into_iter().rev().find(|tier| *tier < span.tier);
    let segments = match shorter {
        Some(tier) => cover(span.hours(), tier, summed, &[]),
        None => vec![super::Segment {
            layout: KeyLayout::HOURS,
            hours: span.hours(),
        }],
    };
    let units = segments.iter().flat_map(|segment| {
        segment.layout.units(segment.hours).map(|unit| {
            let (lower, upper) = segment.layout.bounds(unit);
            let rows = iterate(db, settled, &lower, &upper);
            (rows, segment.layout.prefix_bytes())
        })
    });
    let mut of_hours = SpanMerge::new(units.collect())?;
    let layout = KeyLayout::of(span.tier);
    let (lower, upper) = layout.bounds(span.hours());
    let mut of_span = SpanMerge::new(vec![(
        iterate(db, settled, &lower, &upper),
        layout.prefix_bytes(),
    )])?;
    let first_hour = span.first_hour();
    loop {
        let difference = match (of_hours.next()?, of_span.next()?) {
            (None, None) => return Ok(None),
            (hours, span) if hours == span => continue,
            (hours, span) => [hours, span].map(|row| {
                row.map_or_else(
                    || "no row".to_owned(),
                    |(suffix, sums)| {
                        let key = FlowKey::decode_names(first_hour, suffix);
                        let names = key.map_or_else(
                            |error| error.to_string(),
                            |key| format!("{} to {} in {}", key.src_app, key.dest_app, key.vpc_id),
                        );
                        format!("{names}: bytes_tx {}, bytes_rx {}", sums.tx, sums.rx)
                    },
                )
            }),
        };
        let [hours, span] = difference;
        return Ok(Some(format!("its hours have {hours} where it has {span}")));
    }
}
