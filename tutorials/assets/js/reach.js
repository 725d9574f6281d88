// What is wider than its place is scrolled, by the keyboard too: it takes the focus.
(() => {
  const reach = () => document.querySelectorAll(".arithmatex, .md-typeset__scrollwrap, .picture, .output").forEach((el) => {
    if (el.scrollWidth > el.clientWidth) el.tabIndex = 0;
  });
  window.addEventListener("load", () => document.fonts.ready.then(reach));
  window.addEventListener("resize", reach);
})();
