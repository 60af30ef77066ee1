//! What templates can call beside Handlebars' own words: `table`, `human-bytes`, `duration`, `timestamp`, `json`, `url-encode`
//! and `escape`. They write their result as it is, except in HTML, where a table's cells are escaped.

use std::fmt::Write;

use handlebars::{
    Context, Handlebars, Helper, HelperResult, Output, RenderContext, RenderErrorReason, html_escape, no_escape,
};
use serde_json::Value;

use crate::schema::size::human;

/// Where a template's result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    /// Plain text: nothing is escaped.
    Text,
    /// HTML.
    Html,
}

/// An engine that knows the helpers.
pub(super) fn engine(medium: Medium) -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    if medium == Medium::Text {
        engine.register_escape_fn(no_escape);
    }
    let mut add = |name: &'static str, show: fn(&Value) -> Result<String, String>| {
        let helper = move |helper: &Helper<'_>,
                           _: &Handlebars<'_>,
                           context: &Context,
                           _: &mut RenderContext<'_, '_>,
                           out: &mut dyn Output|
              -> HelperResult {
            let Some(value) = helper.param(0) else {
                // Without a parameter it is the variable of that name: a webhook has the variable `timestamp`.
                let variable = context.data().get(name);
                let variable = variable.ok_or(RenderErrorReason::ParamNotFoundForIndex(name, 0))?;
                return Ok(out.write(&plain(variable))?);
            };
            let text = show(value.value()).map_err(|e| RenderErrorReason::Other(format!("{name}: {e}")))?;
            out.write(&text)?;
            Ok(())
        };
        engine.register_helper(name, Box::new(helper));
    };
    add("human-bytes", human_bytes);
    add("duration", duration);
    add("timestamp", timestamp);
    add("json", |value| Ok(value.to_string()));
    add("url-encode", |value| Ok(url_encode(&plain(value))));
    add("escape", |value| {
        let quoted = Value::String(plain(value)).to_string();
        Ok(quoted[1..quoted.len() - 1].to_owned())
    });
    add(
        "table",
        match medium {
            Medium::Text => |value| table(value).map(|rows| text_table(&rows)),
            Medium::Html => |value| table(value).map(|rows| html_table(&rows)),
        },
    );
    engine
}

/// Texts without quotes, nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> Result<f64, String> {
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number.filter(|n| n.is_finite()).ok_or_else(|| format!("'{}' is no number", plain(value)))
}

fn human_bytes(value: &Value) -> Result<String, String> {
    let bytes = number(value)?;
    // What is too large or negative ends at the limits; nobody has such sizes.
    Ok(human(bytes as u64, 3))
}

fn duration(value: &Value) -> Result<String, String> {
    let seconds = number(value)?.max(0.0) as u64;
    let parts = [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let shown: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    Ok(if shown.is_empty() { "0s".into() } else { shown.join(" ") })
}

fn timestamp(value: &Value) -> Result<String, String> {
    let seconds = number(value)? as i64;
    let time = jiff::Timestamp::from_second(seconds).map_err(|_| format!("'{seconds}' is no time"))?;
    Ok(time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Percent-encoding of all that is not unreserved in RFC 3986.
fn url_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => write!(out, "%{byte:02X}").unwrap_or_default(),
        }
        out
    })
}

/// The labels, then a row of cells for each element, all as text. The value has a `schema` with `columns` (`id`, `label`,
/// perhaps `renderer`) and `data`, a list of objects.
fn table(value: &Value) -> Result<Vec<Vec<String>>, String> {
    let columns = value["schema"]["columns"].as_array().ok_or("schema.columns is no list")?;
    let data = value["data"].as_array().ok_or("data is no list")?;
    let label = |column: &Value| plain(if column["label"].is_null() { &column["id"] } else { &column["label"] });
    let mut rows = vec![columns.iter().map(label).collect()];
    for row in data {
        let cell = |column: &Value| {
            let value = &row[column["id"].as_str().unwrap_or_default()];
            let rendered = match column["renderer"].as_str() {
                _ if value.is_null() => None,
                Some("human-bytes") => human_bytes(value).ok(),
                Some("duration") => duration(value).ok(),
                Some("timestamp") => timestamp(value).ok(),
                _ => None,
            };
            rendered.unwrap_or_else(|| plain(value))
        };
        rows.push(columns.iter().map(cell).collect());
    }
    Ok(rows)
}

fn text_table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut out = String::new();
    for row in rows {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out += padded.join("    ").trim_end();
        out.push('\n');
    }
    out
}

fn html_table(rows: &[Vec<String>]) -> String {
    const CELL: &str = "style=\"border: 1px solid #999; padding: 3px 8px; text-align: left\"";
    let mut out = String::from("<table style=\"border-collapse: collapse\">\n");
    for (index, row) in rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|cell| format!("<{tag} {CELL}>{}</{tag}>", html_escape(cell))).collect();
        out += &format!("<tr>{cells}</tr>\n");
    }
    out + "</table>\n"
}
