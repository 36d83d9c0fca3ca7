/* Play the videos inside each element with data-in-step together: they start, stop, jump and repeat in step.
   An event "restart" of the element starts the videos that it shows from their first frame. */
for (const group of document.querySelectorAll("[data-in-step]")) {
  const all = [...group.querySelectorAll("video")];
  const shown = () => all.filter(video => video.getClientRects().length);
  const play = video => video.play().catch(() => {});  // rejected if the video is paused before its first frame
  let isWanted = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let isInView = false;

  const restart = () => {
    for (const video of all) if (!shown().includes(video)) video.pause();
    for (const video of shown()) video.currentTime = 0;
    if (isWanted && isInView) shown().forEach(play);
  };
  const onPlay = ({target}) => {
    isWanted = true;
    for (const video of shown()) if (video.paused) {
      if (Math.abs(video.currentTime - target.currentTime) > .01) video.currentTime = target.currentTime;
      play(video);
    }
  };
  const onPause = ({target}) => {
    // Not the viewer's: an event that comes late, when the video plays again; a browser that saves power.
    if (!target.paused || document.hidden || !isInView || target.ended || !shown().includes(target)) return;
    isWanted = false;
    for (const video of shown()) video.pause();
  };
  const onSeeked = ({target}) => {
    for (const video of shown())
      if (Math.abs(video.currentTime - target.currentTime) > (target.paused ? .01 : .25))
        video.currentTime = target.currentTime;
  };
  for (const video of all) {
    video.loop = false;
    video.addEventListener("ended", () => { if (shown().every(each => each.ended)) restart(); });
    video.addEventListener("play", onPlay);
    video.addEventListener("pause", onPause);
    video.addEventListener("seeked", onSeeked);
  }
  group.addEventListener("restart", restart);
  new IntersectionObserver(([entry]) => {
    isInView = entry.isIntersecting;
    if (!isInView) for (const video of all) video.pause();
    else if (isWanted) restart();
  }).observe(group);
}
