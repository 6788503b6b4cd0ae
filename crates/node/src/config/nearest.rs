//! The known key that is nearest to a mistyped one.

/// The candidate with the fewest edits from `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
    let mut best: Option<(usize, &str)> = None;
    let mut same_name = None;
    for candidate in candidates {
        let edits = edits(word, candidate);
        if best.is_none_or(|(fewest, _)| edits < fewest) {
            best = Some((edits, candidate));
        }
        if same_name.is_none() && last(candidate) == last(word) {
            same_name = Some(candidate);
        }
    }
    let allowed = (word.chars().count() / 4).clamp(2, 4);
    match best {
        Some((edits, candidate)) if edits <= allowed => Some(candidate),
        _ => same_name,
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut fewest = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                fewest = fewest.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = fewest;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_key_that_was_meant() {
        let keys = ["c2s.listen", "c2s.direct_tls_listen", "admin.listen", "hosts"];
        for (typed, meant) in [
            ("c2s.lisen", Some("c2s.listen")),
            ("c2s.lsiten", Some("c2s.listen")),
            ("host", Some("hosts")),
            ("listen", Some("c2s.listen")),
            ("weather", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }
}
