//! Report: tables as text and HTML, and charts as SVG within the HTML.

use anyhow::anyhow;
use plotters::prelude::{
    ChartBuilder, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};
use weir::model::text::escape;

pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) charts: Vec<Chart>,
}

/// Rows of cells below a heading: the first cell names the row, the others hold figures.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

/// A line chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
}

pub(crate) struct Series {
    pub(crate) name: String,
    /// Index into `COLOURS`, so that a policy has the same colour in every chart.
    pub(crate) colour: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Summary of a distribution.
#[derive(Clone, Copy, serde::Serialize)]
pub(crate) struct Quantiles {
    pub(crate) median: f64,
    pub(crate) p95: f64,
    pub(crate) mean: f64,
}

impl Quantiles {
    /// Computes the summary of at least one value.
    ///
    /// # Panics
    /// If `values` is empty.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
        Self { median: at(0.5), p95: at(0.95), mean: sorted.iter().sum::<f64>() / sorted.len() as f64 }
    }
}

/// Distinguishable with red-green colour blindness: Okabe and Ito, Color universal design, 2008.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];
const SIZE: (u32, u32) = (760, 380);
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse}caption{text-align:left;font-weight:600;padding:.5em 0}\
    th,td{padding:.2em 1em;border-bottom:1px solid #ddd;text-align:right}\
    th:first-child,td:first-child{text-align:left;padding-left:0}\
    svg{max-width:100%;height:auto}td{white-space:nowrap}.wide{overflow-x:auto;margin:1em 0}";

impl Table {
    pub(crate) fn new<T: AsRef<str>>(title: &str, heading: &[T]) -> Self {
        let heading = heading.iter().map(|cell| cell.as_ref().to_owned()).collect();
        Self { title: title.to_owned(), rows: vec![heading] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text with aligned columns: the first to the left, the others to the right.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            text.push_str(&format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end()));
        }
        text
    }

    fn html(&self) -> String {
        let row = |(at, cells): (usize, &Vec<String>)| {
            let tag = if at == 0 { "th" } else { "td" };
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", entities(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().enumerate().map(row).collect();
        let caption = entities(&self.title);
        format!("<div class=wide><table><caption>{caption}</caption>\n{rows}</table></div>\n")
    }
}

impl Report {
    /// One self-contained HTML page.
    ///
    /// # Errors
    /// If a chart can't be rendered.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        let (title, about) = (entities(&self.title), entities(&self.about));
        let mut page = format!(
            "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<meta name=viewport content=\"width=device-width\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<p>{about}</p>\n"
        );
        self.tables.iter().for_each(|table| page.push_str(&table.html()));
        for chart in &self.charts {
            page.push_str(&format!(
                "<h2>{}</h2>\n<figure>{}</figure>\n",
                entities(&chart.title),
                chart.svg()?
            ));
        }
        page.push_str("</html>\n");
        Ok(page)
    }
}

impl Chart {
    fn svg(&self) -> anyhow::Result<String> {
        let mut svg = String::new();
        self.render(&mut svg).map_err(|why| anyhow!("can't render the chart {:?}: {why}", self.title))?;
        Ok(svg)
    }

    fn render(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_max = points().map(|(x, _)| *x).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let y_max = points().map(|(_, y)| *y).fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.05;
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
        let grid = RGBColor(225, 225, 225);
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(grid)
            .x_desc(self.x.as_str())
            .y_desc(self.y.as_str())
            .draw()?;
        for series in &self.series {
            let colour = &COLOURS[series.colour % COLOURS.len()];
            let line = LineSeries::new(series.points.iter().copied(), colour);
            chart
                .draw_series(line)?
                .label(&series.name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], *colour));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .border_style(grid)
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// Escapes text for HTML, control and bidi characters included.
fn entities(text: &str) -> String {
    escape(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut table = Table::new("of <two>", &["policy", "GPUs, %"]);
        table.row(["best-fit".to_owned(), "93.96".to_owned()]);
        table.row(["a & b".to_owned(), "8.1".to_owned()]);
        let series = |name: &str, colour: usize, rise: f64| Series {
            name: name.to_owned(),
            colour,
            points: (0..20).map(|x| (f64::from(x), rise * f64::from(x))).collect(),
        };
        let chart = Chart {
            title: "Allocation".to_owned(),
            x: "hours".to_owned(),
            y: "%".to_owned(),
            series: vec![series("best-fit", 1, 1.0), series("fgd", 0, 2.0)],
        };
        Report {
            title: "t".to_owned(),
            about: "\u{202e}about".to_owned(),
            tables: vec![table],
            charts: vec![chart],
        }
    }

    #[test]
    fn text_table_has_aligned_columns_with_figures_to_the_right() {
        let report = report();
        assert_eq!(
            report.tables[0].text(),
            "of <two>\n  policy    GPUs, %\n  best-fit    93.96\n  a & b         8.1\n"
        );
    }

    #[test]
    fn page_has_a_curve_for_each_series_and_escapes_all_text() {
        let page = report().html().unwrap();
        assert_eq!(page.matches("<svg").count(), 1);
        // Grid lines and legends are lines as well, but of two points only.
        let curves = page.lines().filter(|line| line.contains("<polyline") && line.matches(',').count() > 10);
        let curves: Vec<&str> = curves.collect();
        assert_eq!(curves.len(), 2);
        assert!(curves[0].contains("#E69F00") && curves[1].contains("#0072B2"), "{curves:?}");
        assert!(page.contains("of &lt;two&gt;") && page.contains("a &amp; b") && !page.contains("<two>"));
        assert!(!page.contains('\u{202e}'), "a bidi character must be escaped");
        let empty = Chart { series: Vec::new(), ..report().charts.remove(0) };
        assert!(empty.svg().is_ok(), "an empty chart renders");
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let of = Quantiles::of((0..=100).rev().map(f64::from));
        assert_eq!((of.median, of.p95, of.mean), (50.0, 95.0, 50.0));
    }
}
