//! Covers a range of hours by the largest spans that are summed.

use super::{KeyLayout, Span, Summed, Tier};
use flow::HourRange;

/// Consecutive hours whose rows are read from keys of one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Segment {
    pub(in crate::store) layout: KeyLayout,
    pub(in crate::store) hours: HourRange,
}

/// Covers `hours` by summed spans of at most `largest` and by hours, ascending. No span has one of the `hidden` hours.
pub(in crate::store) fn cover(
    hours: HourRange,
    largest: Tier,
    summed: &Summed,
    hidden: &[HourRange],
) -> Vec<Segment> {
    let tiers = Tier::ALL.into_iter().filter(|tier| *tier <= largest);
    let mut cover = Cover {
        summed,
        hidden,
        segments: Vec::new(),
    };
    cover.add(hours, &tiers.collect::<Vec<_>>());
    cover.segments
}

/// What to read of one layout: one iterator, however many segments there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Layer {
    pub(in crate::store) layout: KeyLayout,
    pub(in crate::store) hours: HourRange,
    /// Hours within, ascending and disjoint, that are not read.
    pub(in crate::store) skipped: Vec<HourRange>,
}

/// The layers of `segments`. They skip `hidden` too.
pub(in crate::store) fn layers(segments: &[Segment], hidden: &[HourRange]) -> Vec<Layer> {
    let layouts = [None, Some(Tier::Day), Some(Tier::ThirtyDays)];
    let layouts = layouts.map(|tier| tier.map_or(KeyLayout::HOURS, KeyLayout::of));
    let of = |layout| {
        let mut own = segments.iter().filter(|segment| segment.layout == layout);
        let mut hours = own.next()?.hours;
        let mut skipped = hidden.to_vec();
        for segment in own {
            skipped.push((hours.end()..segment.hours.start()).into());
            hours = (hours.start()..segment.hours.end()).into();
        }
        Some(Layer {
            layout,
            hours,
            skipped: HourRange::disjoint(skipped),
        })
    };
    layouts.into_iter().filter_map(of).collect()
}

struct Cover<'a> {
    summed: &'a Summed,
    hidden: &'a [HourRange],
    segments: Vec<Segment>,
}

impl Cover<'_> {
    /// Adds segments for `hours`, by spans of these tiers, ascending.
    fn add(&mut self, hours: HourRange, tiers: &[Tier]) {
        let Some((tier, smaller)) = tiers.split_last() else {
            return self.push(KeyLayout::HOURS, hours);
        };
        let spans: Vec<Span> = self.summed.overlapping(*tier, hours).collect();
        let mut start = hours.start();
        for span in spans {
            let of_span = span.hours();
            let is_inside = hours.start() <= of_span.start() && of_span.end() <= hours.end();
            if is_inside && !self.hides(of_span) {
                self.add((start..of_span.start()).into(), smaller);
                self.push(KeyLayout::of(*tier), of_span);
                start = of_span.end();
            }
        }
        self.add((start..hours.end()).into(), smaller);
    }

    fn hides(&self, hours: HourRange) -> bool {
        let overlaps =
            |other: &HourRange| other.start() < hours.end() && hours.start() < other.end();
        self.hidden.iter().any(overlaps)
    }

    fn push(&mut self, layout: KeyLayout, hours: HourRange) {
        if hours.is_empty() {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.layout == layout && last.hours.end() == hours.start() => {
                last.hours = (last.hours.start()..hours.end()).into();
            }
            _ => self.segments.push(Segment { layout, hours }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_is_read_once_and_skips_what_others_have() {
        let day = KeyLayout::of(Tier::Day);
        let segment = |layout, hours: std::ops::Range<u32>| Segment {
            layout,
            hours: hours.into(),
        };
        let segments = [
            segment(KeyLayout::HOURS, 5..24),
            segment(day, 24..72),
            segment(KeyLayout::HOURS, 72..96),
            segment(day, 96..120),
            segment(KeyLayout::HOURS, 120..130),
        ];
        let found = layers(&segments, &[(75..80).into(), (90..100).into()]);
        let expected = [
            Layer {
                layout: KeyLayout::HOURS,
                hours: (5..130).into(),
                skipped: vec![(24..72).into(), (75..80).into(), (90..120).into()],
            },
            Layer {
                layout: day,
                hours: (24..120).into(),
                skipped: vec![(72..100).into()],
            },
        ];
        assert_eq!(found, expected);
        assert_eq!(layers(&[], &[]), []);
    }
}
