//! A line chart as SVG inside the page: no script, no picture from elsewhere. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::escaped;

/// Values over time, by the name in the legend.
pub(super) struct Series {
    pub(super) name: &'static str,
    /// In the order of time.
    pub(super) points: Vec<(Timestamp, f64)>,
}

/// So many of the newest points of a series are drawn.
const MOST: usize = 120;
/// The drawing's size, in its own units: readable at the width of a telephone.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 170.0;
/// What is around the plot: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (58.0, 10.0, 8.0, 22.0);

/// A shape for each series, so that colour is not all that tells them apart, and its sign in the legend.
const SHAPES: [char; 3] = ['●', '■', '▲'];

/// The chart with its legend; None where there is nothing to draw. `show` writes a value.
pub(super) fn chart(id: &str, title: &str, series: &[Series], show: fn(f64) -> String) -> Option<String> {
    let drawn: Vec<(&str, &[(Timestamp, f64)])> = series
        .iter()
        .map(|series| (series.name, &series.points[series.points.len().saturating_sub(MOST)..]))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let all = || drawn.iter().flat_map(|(_, points)| points.iter());
    let (begin, end) = (all().map(|point| point.0).min()?, all().map(|point| point.0).max()?);
    let highest = all().map(|point| point.1).fold(0.0, f64::max);
    let ceiling = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let span = end.duration_since(begin).as_secs_f64();
    let (left, right, above, below) = MARGIN;
    let x = |at: Timestamp| {
        // A single moment stands in the middle.
        let share = if span > 0.0 { at.duration_since(begin).as_secs_f64() / span } else { 0.5 };
        left + share * (WIDTH - left - right)
    };
    let y = |value: f64| HEIGHT - below - value / ceiling * (HEIGHT - above - below);
    let summary: Vec<String> = drawn
        .iter()
        .map(|(name, points)| {
            let values = || points.iter().map(|point| point.1);
            let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
            let newest = points.last().map_or(0.0, |point| point.1);
            format!("{name}: {} values, {} to {}, last {}", points.len(), show(least), show(most), show(newest))
        })
        .collect();
    let label = escaped(&format!("{title}. {}", summary.join(". ")));
    let mut svg =
        format!("<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n");
    for share in [0.0, 0.5, 1.0] {
        let (value, height) = (ceiling * share, y(ceiling * share));
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                WIDTH - right,
                left - 5.0,
                height + 4.0,
                escaped(&show(value))
            ),
        );
    }
    let days = if span > 0.0 { vec![(begin, "start"), (end, "end")] } else { vec![(begin, "middle")] };
    for (at, anchor) in days {
        let day = if span < 172_800.0 { at.strftime("%m-%d %H:%M") } else { at.strftime("%Y-%m-%d") };
        put(
            &mut svg,
            format_args!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{day}</text>\n", x(at), HEIGHT - 6.0),
        );
    }
    for (number, (name, points)) in drawn.iter().enumerate() {
        let class = number % SHAPES.len();
        let path: Vec<String> = points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        put(&mut svg, format_args!("<polyline class=\"line s{class}\" points=\"{}\"/>\n", path.join(" ")));
        for (at, value) in *points {
            let tip = escaped(&format!("{name} {}: {}", at.strftime("%Y-%m-%d %H:%M:%SZ"), show(*value)));
            put(&mut svg, format_args!("{}<title>{tip}</title></{}>\n", mark(class, x(*at), y(*value)), tag(class)));
        }
    }
    let legend: Vec<String> = drawn
        .iter()
        .enumerate()
        .map(|(number, (name, _))| {
            let class = number % SHAPES.len();
            format!("<span class=\"legend s{class}\">{}</span> {}", SHAPES[class], escaped(name))
        })
        .collect();
    Some(format!(
        "<figure aria-labelledby=\"{id}\">\n<figcaption id=\"{id}\">{}: {}</figcaption>\n{svg}</svg>\n</figure>\n",
        escaped(title),
        legend.join(", ")
    ))
}

fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a String takes everything");
}

/// The element of a series' mark.
fn tag(class: usize) -> &'static str {
    ["circle", "rect", "path"][class]
}

/// The mark, its element left open.
fn mark(class: usize, x: f64, y: f64) -> String {
    match class {
        0 => format!("<circle class=\"mark s0\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\">"),
        1 => format!("<rect class=\"mark s1\" x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\">", x - 3.0, y - 3.0),
        _ => format!(
            "<path class=\"mark s2\" d=\"M{x:.1},{:.1} L{:.1},{:.1} L{:.1},{:.1} Z\">",
            y - 3.5,
            x - 3.5,
            y + 3.0,
            x + 3.5,
            y + 3.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn show(value: f64) -> String {
        format!("{value:.0} <s>")
    }

    fn series(name: &'static str, points: &[(i64, f64)]) -> Series {
        let at = |second| Timestamp::from_second(second).expect("a time");
        Series { name, points: points.iter().map(|(second, value)| (at(*second), *value)).collect() }
    }

    #[test]
    fn a_chart_says_in_words_what_it_draws() {
        let drawn =
            chart("sizes", "Sizes", &[series("dump", &[(0, 10.0), (86_400, 20.0)]), series("volume", &[])], show);
        let drawn = drawn.expect("drawn");
        assert!(
            drawn.contains("aria-label=\"Sizes. dump: 2 values, 10 &lt;s&gt; to 20 &lt;s&gt;, last 20 &lt;s&gt;\""),
            "{drawn}"
        );
        assert_eq!(drawn.matches("<circle").count(), 2);
        assert!(!drawn.contains("volume") && !drawn.contains("style="), "{drawn}");
        assert!(chart("none", "None", &[series("dump", &[])], show).is_none());
    }

    proptest! {
        #[test]
        fn every_mark_is_inside(points in proptest::collection::vec((0..4_000_000_000_i64, 0.0..1e15_f64), 1..300)) {
            let mut points = points;
            points.sort_by_key(|point| point.0);
            let drawn = chart("c", "C", &[series("dump", &points)], show).expect("drawn");
            prop_assert_eq!(drawn.matches("<circle").count(), points.len().min(MOST));
            prop_assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
            for (name, most) in [("cx=\"", WIDTH), ("cy=\"", HEIGHT)] {
                for part in drawn.split(name).skip(1) {
                    let value: f64 = part.split('"').next().expect("a value").parse().expect("a number");
                    prop_assert!((0.0..=most).contains(&value), "{name}{value}");
                }
            }
        }
    }
}
