//! A line by line difference of two texts, for people.

/// Lines of both, those only expected marked `-`, those only heard marked `+`.
pub fn diff(expected: &[String], heard: &[String]) -> String {
    let width = heard.len() + 1;
    // The longest common part of every pair of tails, last line first.
    let mut common = vec![0_usize; (expected.len() + 1) * width];
    for e in (0..expected.len()).rev() {
        for h in (0..heard.len()).rev() {
            common[e * width + h] = if expected[e] == heard[h] {
                common[(e + 1) * width + h + 1] + 1
            } else {
                common[(e + 1) * width + h].max(common[e * width + h + 1])
            };
        }
    }
    let (mut e, mut h, mut out) = (0, 0, String::new());
    while e < expected.len() || h < heard.len() {
        if e < expected.len() && h < heard.len() && expected[e] == heard[h] {
            out.push_str(&format!("      {}\n", expected[e]));
            (e, h) = (e + 1, h + 1);
        } else if e < expected.len()
            && (h == heard.len() || common[(e + 1) * width + h] >= common[e * width + h + 1])
        {
            out.push_str(&format!("    - {}\n", expected[e]));
            e += 1;
        } else {
            out.push_str(&format!("    + {}\n", heard[h]));
            h += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_marked_and_what_is_equal_is_not() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(diff(&lines("a b c"), &lines("a x c")), "      a\n    - b\n    + x\n      c\n");
        assert_eq!(diff(&lines("a"), &[]), "    - a\n");
    }
}
