//! Environment variables in the configuration text (COMPAT §6), as LiteFS expands them.

use std::sync::LazyLock;

use regex::Regex;

/// `A == "x"`, `A != 'x'`, `A == B`: a variable's name, the operator, then a text or another variable's name.
static COMPARISON: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"^([A-Za-z0-9_]+)\s*(==|!=)\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_]+))$"#).ok());

/// Replaces `$NAME`, `${NAME}` and `${A == "x"}` in `text`. A variable that `env` does not know is empty. A `$` that no
/// name follows stays.
pub fn expand(text: &str, env: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (value, used) = expand_one(after, &env);
        match value {
            Some(value) => out.push_str(&value),
            None => out.push('$'),
        }
        rest = &after[used..];
    }
    out.push_str(rest);
    out
}

/// What stands for the text after a `$`, and how many bytes of it are used up. `None`: not a variable.
fn expand_one(after: &str, env: &impl Fn(&str) -> Option<String>) -> (Option<String>, usize) {
    if let Some(braced) = after.strip_prefix('{') {
        return match braced.find('}') {
            Some(end) => (Some(evaluate(braced[..end].trim(), env)), end + 2),
            None => (None, 0),
        };
    }
    match after.bytes().next() {
        // The shell's special parameters are single characters, which no environment holds.
        Some(b) if b.is_ascii_digit() || b"*#$@!?-".contains(&b) => (Some(String::new()), 1),
        _ => {
            let end = after.bytes().position(|b| !(b.is_ascii_alphanumeric() || b == b'_')).unwrap_or(after.len());
            if end == 0 { (None, 0) } else { (Some(env(&after[..end]).unwrap_or_default()), end) }
        }
    }
}

fn evaluate(expression: &str, env: &impl Fn(&str) -> Option<String>) -> String {
    let value = |name: &str| env(name).unwrap_or_default();
    let Some(parts) = COMPARISON.as_ref().and_then(|regex| regex.captures(expression)) else {
        return value(expression);
    };
    let right = match (parts.get(3).or(parts.get(4)), parts.get(5)) {
        (Some(text), _) => text.as_str().to_owned(),
        (None, Some(name)) => value(name.as_str()),
        (None, None) => String::new(),
    };
    let equal = value(&parts[1]) == right;
    (equal == (&parts[2] == "==")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        expand(text, |name| match name {
            "A" => Some("x".into()),
            "B" => Some("x".into()),
            "C" => Some("y z".into()),
            _ => None,
        })
    }

    #[test]
    fn variables_expand_with_and_without_braces() {
        assert_eq!(expanded("a: $A/${C}/$NONE/${ A }$"), "a: x/y z//x$");
        assert_eq!(expanded("^/api/.*$"), "^/api/.*$");
        assert_eq!(expanded("cost $ 5, ${open"), "cost $ 5, ${open");
        assert_eq!(expanded("$$ $1"), " ");
        assert_eq!(expanded("ü$Aü"), "üxü");
    }

    #[test]
    fn comparisons_become_true_or_false() {
        assert_eq!(expanded(r#"${A == "x"} ${A != 'x'} ${A == B} ${A == C} ${A != C}"#), "true false true false true");
        assert_eq!(expanded(r#"${C=="y z"} ${NONE == ""} ${NONE != "q"}"#), "true true true");
    }
}
