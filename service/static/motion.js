// Movement, so that one sees what went where: measure, change, then play from the old places (FLIP).

const GLIDE = { duration: 520, easing: "cubic-bezier(.22, .8, .2, 1)" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Does `change` to the children of `root` and lets them glide from where they were; those that left fade where they were.
export function glide(root, change) {
  if (calm.matches) return change();
  const before = new Map([...root.children].map((child) => [child, child.getBoundingClientRect()]));
  for (const child of root.children) for (const running of child.getAnimations()) running.cancel();
  change();
  for (const child of root.children) {
    const from = before.get(child);
    before.delete(child);
    if (!from) {
      child.animate({ opacity: [0, 1], transform: ["translateY(14px)", "none"] }, GLIDE);
      continue;
    }
    const to = child.getBoundingClientRect();
    const [x, y] = [from.left - to.left, from.top - to.top];
    if (x || y) child.animate({ transform: [`translate(${x}px, ${y}px)`, "none"] }, GLIDE);
  }
  for (const [gone, from] of before) {
    if (from.bottom < 0 || from.top > innerHeight) continue;
    const ghost = ghostOf(gone, from);
    ghost.animate({ opacity: [0.7, 0] }, { duration: 240, easing: "ease-out" }).finished.then(() => ghost.remove());
  }
}

// Lets a picture of `node` fly from where something was to where `node` is.
export function fly(node, from) {
  if (calm.matches || !from) return;
  const to = node.getBoundingClientRect();
  const ghost = ghostOf(node, to);
  const move = `translate(${from.left - to.left}px, ${from.top - to.top}px) scale(${from.width / to.width})`;
  node.animate({ opacity: [0, 0, 1], offset: [0, 0.98, 1] }, GLIDE);
  ghost.animate({ transform: [move, "none"] }, GLIDE).finished.then(() => ghost.remove());
}

function ghostOf(node, place) {
  const ghost = document.createElement("div");
  ghost.className = "ghost";
  ghost.inert = true;
  ghost.setAttribute("aria-hidden", "true");
  for (const side of ["left", "top", "width", "height"]) ghost.style[side] = `${place[side]}px`;
  ghost.append(node.cloneNode(true));
  document.body.append(ghost);
  return ghost;
}
