// The snippets of search results leave formulas out: their source is no text to be read.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const withFormulas = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll("div.math").forEach((formula) => formula.remove());
    page.querySelectorAll("span.math").forEach((formula) => (formula.textContent = "…"));
    return withFormulas(page.documentElement.outerHTML, anchor);
  };
});

// A picture of several panels keeps its size on a phone, and scrolls in a frame of its own.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("article img").forEach((picture) => {
    const mark = () => {
      if (picture.naturalWidth < 1.6 * picture.naturalHeight || picture.closest(".sd-card")) return;
      const frame = document.createElement("div");
      frame.className = "wide-picture";
      frame.tabIndex = 0;
      picture.replaceWith(frame);
      frame.append(picture);
    };
    picture.complete ? mark() : picture.addEventListener("load", mark, { once: true });
  });
});
