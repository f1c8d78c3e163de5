// The widget scripts hand the labels of sliders to MathJax 2; the book loads MathJax 3.
document.addEventListener("DOMContentLoaded", () => {
  const mathjax = (window.MathJax = window.MathJax || {});
  if (!mathjax.Hub) {
    mathjax.Hub = {
      Queue: ([, , element]) => mathjax.startup?.promise?.then(() => mathjax.typesetPromise([element])),
    };
  }
});
