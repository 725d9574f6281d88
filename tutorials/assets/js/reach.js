// What is wider than its place is scrolled, by the keyboard too: it takes the focus. An equation that nearly fits is made to fit.
(() => {
  const reach = () => {
    document.querySelectorAll("div.arithmatex").forEach((el) => {
      el.style.fontSize = "";
      const share = el.clientWidth / el.scrollWidth;
      if (share < 1) el.style.fontSize = `${Math.max(0.98 * share, 0.8)}em`;
    });
    document.querySelectorAll(".arithmatex, .md-typeset__scrollwrap, .picture, .output").forEach((el) => {
      if (el.scrollWidth > el.clientWidth) el.tabIndex = 0;
    });
  };
  window.addEventListener("load", () => document.fonts.ready.then(reach));
  window.addEventListener("resize", reach);
})();
