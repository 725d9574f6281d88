// Figures with a slider: each position shows the frame of its number. Without this script the frame drawn at build stands still.
(() => {
  const set = (figure) => {
    const input = figure.querySelector("input[type=range]");
    const caption = figure.querySelector("figcaption");
    const captions = JSON.parse(caption.dataset.captions);
    const frames = figure.querySelectorAll("[data-frame]");
    const show = () => {
      frames.forEach((g) => g.setAttribute("display", g.dataset.frame === input.value ? "inline" : "none"));
      caption.textContent = captions[input.value];
      input.setAttribute("aria-valuetext", captions[input.value]);
    };
    input.addEventListener("input", show);
    show();
    figure.classList.add("moves");
  };
  const all = (root) => root.querySelectorAll("figure.moving:not(.moves)").forEach(set);
  all(document.body);
  if (typeof document$ !== "undefined") document$.subscribe(() => all(document.body));
})();
