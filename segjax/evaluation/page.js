"use strict";
document.documentElement.classList.add("js");

// Pictures: two layers, one left and one right of a split that is dragged or moved by the slider.
const controls = document.querySelector(".layers");
const chosen = (side) => controls.elements[side].value;

const tell = (picture) => {
  const slider = picture.querySelector("input[type=range]");
  const name = (side) => picture.querySelectorAll(".layer")[chosen(side)].textContent.trim();
  picture.querySelector(".stage").style.setProperty("--split", `${slider.value}%`);
  slider.setAttribute(
    "aria-valuetext", `${name("left")} on the left ${slider.value} %, then ${name("right")}`);
};

const choose = () => {
  for (const picture of document.querySelectorAll(".picture")) {
    picture.querySelectorAll(".layer").forEach((layer, i) => {
      layer.classList.toggle("left", String(i) === chosen("left"));
      layer.classList.toggle("right", String(i) === chosen("right"));
    });
    tell(picture);
  }
};

if (controls) {
  controls.hidden = false;
  controls.addEventListener("change", choose);
  for (const picture of document.querySelectorAll(".picture")) {
    const stage = picture.querySelector(".stage");
    const slider = picture.querySelector("input[type=range]");
    slider.addEventListener("input", () => tell(picture));
    const larger = document.createElement("button");
    Object.assign(larger, { type: "button", textContent: "larger", ariaPressed: "false" });
    larger.addEventListener("click", () => {
      larger.ariaPressed = String(picture.classList.toggle("wide"));
      larger.textContent = larger.ariaPressed === "true" ? "smaller" : "larger";
    });
    picture.querySelector("figcaption").prepend(larger);
    const drag = (event) => {
      const box = stage.getBoundingClientRect();
      slider.value = (100 * (event.clientX - box.left)) / box.width;
      tell(picture);
    };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      drag(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (stage.hasPointerCapture(event.pointerId)) drag(event);
    });
  }
  choose();
}

// Tables: a click on a heading sorts by its column, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const cells = (row) => row.cells[column];
      const numbers = table.tBodies[0].querySelector(`td:nth-child(${column + 1})[data-v]`);
      const before = heading.getAttribute("aria-sort");
      // Numbers start with the greatest, names with the first.
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = before === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [cells(a), cells(b)];
        if (!numbers) return sign * x.textContent.localeCompare(y.textContent, "en");
        const [v, w] = [x.dataset.v, y.dataset.v];
        if (v === undefined || w === undefined) return (v === undefined) - (w === undefined);
        return sign * (v - w);
      };
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

// On paper everything is open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.screen)")];
  opened.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
