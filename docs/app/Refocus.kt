// Not compiled here: no Android SDK on the build machine. Calls follow ExecuTorch's Android guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-android.html (AAR executorch-android).
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists a method for every size.

import java.io.File
import kotlin.math.abs
import kotlin.math.ln
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Refocus(ptePath: String) {
    private val module = Module.load(ptePath) // executorch/student-int8.pte, copied out of the assets

    /**
     * photo: 3 * height * width values of the method's size, channels first, (pixel / 127.5 - 1);
     * position: 0 near to 8 far, null where it is unknown. Returns all outputs: nine such pictures
     * first.
     */
    fun analyse(photo: FloatArray, position: Int?, method: Method = USUAL): List<FloatArray> {
        val oneHot = FloatArray(9).also { if (position != null) it[position] = 1f }
        val (height, width) = method.height.toLong() to method.width.toLong()
        val outputs = module.execute(
            method.name,
            EValue.from(Tensor.fromBlob(photo, longArrayOf(1, 3, height, width))),
            EValue.from(Tensor.fromBlob(oneHot, longArrayOf(1, 9))),
        )
        return outputs.map { it.toTensor().dataAsFloatArray } // stack, sharp, detail, dioptres, positions
    }

    companion object {
        val USUAL = Method("forward", 320, 448)

        /** The method whose photos are most like one of this size in shape: nothing is squashed or cut. */
        fun methodFor(height: Int, width: Int, methods: List<Method>): Method = methods.minBy {
            abs(ln(it.width.toDouble() / it.height * height / width))
        }

        /** Of a golden bundle, the first .pte that is right on this phone (Canary.kt). */
        fun open(bundle: File): Refocus? = Canary(bundle).firstThatWorks(
            "executorch", { file, _ -> Refocus(file.path) },
            { model, photo, at, method -> model.analyse(photo, at, method ?: USUAL)[0] },
        )
    }
}
