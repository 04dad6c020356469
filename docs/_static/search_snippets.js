// The snippets of search results leave formulas out: their source is no text to be read.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const withFormulas = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".math, .MathJax, mjx-container").forEach((formula) => {
      formula.textContent = formula.tagName === "DIV" ? "" : "…";
    });
    return withFormulas(page.documentElement.outerHTML, anchor);
  };
});
