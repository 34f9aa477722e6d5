// Maths: the server leaves it as its source in <code class="maths">; here KaTeX makes MathML of it, which browsers draw.
// KaTeX is fetched where there is maths. What it cannot read stays as it was written.

const MARKS = /^(\\\(|\\\[|\$\$?)([\s\S]*?)(\\\)|\\\]|\$\$?)$/;

/** Typeset what stands in `node`; its source is the formula's title. */
export async function typeset(node) {
  const found = node.querySelectorAll("code.maths");
  if (!found.length) return;
  try {
    await import("./katex/katex.min.js"); // its licence is beside it
  } catch {
    return; // the server is away: the source is there to be read
  }
  for (const code of found) {
    const source = code.textContent;
    const drawn = document.createElement("span");
    const displayMode = code.classList.contains("display");
    try {
      globalThis.katex.render(MARKS.exec(source)?.[2] ?? source, drawn, { displayMode, output: "mathml", throwOnError: true, strict: false, maxSize: 20, maxExpand: 200 });
    } catch {
      continue;
    }
    drawn.className = displayMode ? "maths display" : "maths";
    drawn.title = source;
    code.replaceWith(drawn);
  }
}
